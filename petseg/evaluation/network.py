"""The network as evaluation uses it: on pictures of its own size, or by windows on pictures of any size."""

from __future__ import annotations

from statistics import fmean

import torch
import torch.nn.functional as F

from petseg.data.inputs import IGNORE_INDEX
from petseg.data.tars import TarReader
from petseg.data.whole.whole_cache import surveyed_sizes
from petseg.metrics.tta import Model
from petseg.metrics.windows import num_windows, windowed
from petseg.run.parts import Parts


def network_of(parts: Parts) -> Model:
    """The run's model; with data.fit crop, of pictures at their own resolution."""
    if parts.config.data.fit != "crop":
        return parts.bare_model
    return windowed(parts.bare_model, parts.config.data.size_px, parts.eval_batch_size)


def windows_per_picture(tars: TarReader) -> float:
    """Mean number of passes of one sample that evaluation takes for a picture of a split, by some of its pictures."""
    sizes = surveyed_sizes(tars) if tars.fit == "crop" else []
    return fmean(num_windows(size, tars.size_px) for size in sizes) if sizes else 1.0


def pixels_of(parts: Parts, target: torch.Tensor) -> torch.Tensor:
    """(B, H, W) target -> (B,) pixels of each picture that a mask could fill: margins of a letterbox are none.

    Squashed pictures have as many as the network sees, those that the target ignores included.
    """
    if parts.config.data.fit == "squash":
        return target.new_full((len(target),), target[0].numel())
    return (target != IGNORE_INDEX).sum(dim=(1, 2))


def for_display(parts: Parts, masks: torch.Tensor) -> torch.Tensor:
    """(B, h, w) masks -> (B, H, W) at the network's size, by the nearest pixel: all pictures' masks in one array."""
    if tuple(masks.shape[-2:]) == parts.config.data.size_px:
        return masks
    planes = F.interpolate(masks.unsqueeze(1).to(torch.uint8), parts.config.data.size_px, mode="nearest-exact")
    return planes.squeeze(1).to(masks.dtype)
