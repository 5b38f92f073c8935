"""Progressive resizing: training begins on small pictures, which are cheap, and ends on those of full size.

After the small sizes of Howard's ImageNet training for DAWNBench (2018), which others' fast recipes took over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from petseg.config import SIZE_MULTIPLE_PX, RunConfig


def size_px(config: RunConfig, step: int, total_steps: int) -> int:
    """Side of the pictures in optimizer step `step` (from 0) of `total_steps`.

    From train.start_size_px to data.image_size_px in equally long stretches of the sizes between, SIZE_MULTIPLE_PX
    apart; full from train.full_size_from of the steps on.
    """
    start, full = config.train.start_size_px, config.data.image_size_px
    if not start:
        return full
    smaller = (full - start) // SIZE_MULTIPLE_PX
    grown = int(smaller * step / (config.train.full_size_from * total_steps))
    return min(full, start + SIZE_MULTIPLE_PX * grown)


def relative_area(config: RunConfig, first: int, end: int, total_steps: int) -> float:
    """Mean area of the pictures in steps first to end - 1, as a share of the full one: what convolutions cost."""
    if not config.train.start_size_px:
        return 1.0
    areas = [size_px(config, step, total_steps) ** 2 for step in range(first, end)]
    return sum(areas) / (len(areas) * config.data.image_size_px**2)


def shrink(image: torch.Tensor, trimap: torch.Tensor, side_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) float, averaged, and (B, H, W) uint8, nearest, to side_px square."""
    size = (side_px, side_px)
    small = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    return small, F.interpolate(trimap.unsqueeze(1), size, mode="nearest-exact").squeeze(1)


@torch.no_grad()
def require_sizes(config: RunConfig, model: nn.Module) -> None:
    """Raises ValueError if the model does not work on one of the sizes, as most transformers of timm do not."""
    start, full = config.train.start_size_px, config.data.image_size_px
    if not start:
        return
    device, was_training = next(model.parameters()).device, model.training
    model.eval()  # which leaves BatchNorm's statistics as they are
    for side in range(start, full, SIZE_MULTIPLE_PX):
        try:
            model(torch.zeros(2, 3, side, side, device=device))
        except Exception as error:  # whatever the layers of others raise for a size that is not theirs
            raise ValueError(
                f"train.start_size_px = {start}: model.arch = {config.model.arch!r} does not work on pictures of "
                f"{side} px ({str(error) or type(error).__name__}): choose a larger one, or leave it out"
            ) from error
    model.train(was_training)
