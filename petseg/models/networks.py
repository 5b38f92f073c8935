"""The networks of a weights file: what their shape depends on, several as an ensemble, and which ones a file has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from petseg.config import ModelConfig, RunConfig
from petseg.config.sizes import ImageSize
from petseg.config.values import with_values
from petseg.models.build import build_model
from shards.files import build

ENTRY = "petseg"  # of the metadata of safetensors: what petseg says of the file


@dataclass(frozen=True)
class Network:
    """All that the shape of a network depends on, besides the classes and the size of the pictures."""

    arch: str
    width: int
    up: str
    encoder: str
    pretrained: bool  # then the encoder expects the normalisation of its package

    @classmethod
    def of(cls, model: ModelConfig) -> Network:
        return cls(model.arch, model.width, model.up, model.encoder, model.weights != "none")

    def config(self) -> ModelConfig:
        """Raises ValueError for an architecture that there is not. Nothing is ever fetched by it."""
        values = {f"model.{name}": value for name, value in asdict(self).items()}
        weights = "imagenet" if values.pop("model.pretrained") else "none"
        return with_values(RunConfig(), values | {"model.weights": weights}).model


class Ensemble(nn.Module):
    """Networks whose class probabilities are averaged: (B, 3, H, W) -> (B, K, H, W), the logarithm of the mean."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = torch.stack([member(x).float().softmax(dim=1) for member in self.members]).mean(dim=0)
        return mean.clamp(min=torch.finfo(torch.float32).tiny).log()


def build_networks(networks: Sequence[Network], num_classes: int, image_size_px: ImageSize) -> nn.Module:
    """One network, or the ensemble of several, with fresh weights from torch's global random state."""
    members = [build_model(one.config(), num_classes, image_size_px, pretrained=False) for one in networks]
    return members[0] if len(members) == 1 else Ensemble(members)


def read_networks(path: Path) -> tuple[Network, ...]:
    """The networks of a weights file by its header, for a forecast: petseg.inference.weights_file checks the whole.

    Raises ValueError for a file that is missing or was not written by petseg.
    """
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {})[ENTRY])
        return tuple(build(Network, one) for one in content["models"])
    except OSError:
        raise ValueError(f"{path}: there is no such file (from {Path.cwd()})") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path} was not written by petseg: make one with `python -m petseg.best`") from None
