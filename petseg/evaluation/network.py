"""The network as evaluation uses it: on pictures of its own size, or by windows on pictures of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from petseg.metrics.tta import Model
from petseg.metrics.windows import windowed
from petseg.run.parts import Parts


def network_of(parts: Parts) -> Model:
    """The run's model; with data.fit crop, of pictures at their own resolution."""
    if parts.config.data.fit != "crop":
        return parts.bare_model
    return windowed(parts.bare_model, parts.config.data.size_px, parts.eval_batch_size)


def for_display(parts: Parts, masks: torch.Tensor) -> torch.Tensor:
    """(B, h, w) masks -> (B, H, W) at the network's size, by the nearest pixel: all pictures' masks in one array."""
    if tuple(masks.shape[-2:]) == parts.config.data.size_px:
        return masks
    planes = F.interpolate(masks.unsqueeze(1).to(torch.uint8), parts.config.data.size_px, mode="nearest-exact")
    return planes.squeeze(1).to(masks.dtype)
