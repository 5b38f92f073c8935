"""Progressive resizing: training starts on small pictures, which are cheap, and ends on pictures of full size.

Howard's ImageNet training for DAWNBench (2018) introduced it, and other fast recipes adopted it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from petseg.config import RunConfig
from petseg.config.sizes import SIZE_MULTIPLE_PX, Size, text_of


def size_px(config: RunConfig, step: int, total_steps: int) -> Size:
    """Height and width of the pictures in optimizer step `step` (from 0) of `total_steps`.

    The shorter side grows from train.start_size_px in steps of SIZE_MULTIPLE_PX, which last equally long, and the
    pictures have data.image_size_px from the share train.full_size_from of the optimizer steps on.
    """
    start, full = config.train.start_size_px, config.data.size_px
    if not start:
        return full
    smaller = (min(full) - start) // SIZE_MULTIPLE_PX
    grown = int(smaller * step / (config.train.full_size_from * total_steps))
    return size_of_shorter(full, min(min(full), start + SIZE_MULTIPLE_PX * grown))


def size_of_shorter(full: Size, shorter_px: int) -> Size:
    """The size with this shorter side and nearly the shape of the full one: multiples of SIZE_MULTIPLE_PX."""
    height, width = (round(side * shorter_px / min(full) / SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX for side in full)
    return height, width


def relative_area(config: RunConfig, first: int, end: int, total_steps: int) -> float:
    """Mean area of the pictures in steps first to end - 1 as a share of the full area: what convolutions cost."""
    if not config.train.start_size_px:
        return 1.0
    areas = [math.prod(size_px(config, step, total_steps)) for step in range(first, end)]
    return sum(areas) / (len(areas) * math.prod(config.data.size_px))


def shrink(image: torch.Tensor, labels: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Shrink (B, 3, H, W) float pictures by averaging, and (B, H, W) uint8 labels to the nearest, to `size`."""
    small = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    return small, F.interpolate(labels.unsqueeze(1), size, mode="nearest-exact").squeeze(1)


@torch.no_grad()
def require_sizes(config: RunConfig, model: nn.Module, name: str = "") -> None:
    """Raises ValueError if the model does not work on one of the sizes, as most transformers of timm do not.

    name: of the model in the message, by default as its architecture
    """
    start, full = config.train.start_size_px, config.data.size_px
    if not start:
        return
    name = name or f"model.arch = {config.model.arch!r}"
    device, was_training = next(model.parameters()).device, model.training
    model.eval()  # which leaves BatchNorm's statistics as they are
    for shorter in range(start, min(full), SIZE_MULTIPLE_PX):
        size = size_of_shorter(full, shorter)
        try:
            model(torch.zeros(2, 3, *size, device=device))
        except Exception as error:  # other packages' layers can raise anything for a size that they do not take
            raise ValueError(
                f"train.start_size_px = {start}: {name} does not work on pictures of "
                f"{text_of(size)} px ({str(error) or type(error).__name__}): choose a larger one, or leave it out"
            ) from error
    model.train(was_training)
