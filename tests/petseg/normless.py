"""Models without BatchNorm, in which no sample touches another: their gradient is the mean of the samples' own."""

from __future__ import annotations

from typing import Any

from torch import nn

from petseg.models.build import build_model


def build_normless(*args: Any, **kwargs: Any) -> nn.Module:
    """What petseg.run builds, with identities in place of BatchNorm."""
    model = build_model(*args, **kwargs)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return model
