"""Test-time augmentation: the class probabilities of several views of a picture, averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from petseg.config.sizes import SIZE_MULTIPLE_PX
from petseg.metrics import Tta

SCALES = (0.75, 1.0, 1.25)

Model = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, H, W) -> (B, C, H, W) logits


def predict_logits(model: Model, image: torch.Tensor, tta: Tta) -> torch.Tensor:
    """(B, 3, H, W) pictures -> (B, C, H, W) logits; with views, the logarithm of their mean probabilities.

    flips: the picture and its left-right mirror image; scales: the picture resized to each of SCALES, rounded up to a
    size that the network takes; flips_scales: all six. Views are mapped back before they are averaged.
    """
    if tta == "none":
        return model(image)
    flips = (False, True) if "flips" in tta else (False,)
    scales = SCALES if "scales" in tta else (1.0,)
    views = [_view(model, image, flip, scale) for flip in flips for scale in scales]
    return torch.stack(views).mean(dim=0).clamp(min=torch.finfo(torch.float32).tiny).log()


def _view(model: Model, image: torch.Tensor, flip: bool, scale: float) -> torch.Tensor:
    """(B, C, H, W) probabilities of one view, mapped back."""
    size = image.shape[-2:]
    viewed = [scaled_px(side, scale) for side in size]
    view = image.flip(-1) if flip else image
    if viewed != list(size):
        view = F.interpolate(view, size=viewed, mode="bilinear", antialias=scale < 1)
    probability = model(view).float().softmax(dim=1)
    if viewed != list(size):
        probability = F.interpolate(probability, size=size, mode="bilinear")
    return probability.flip(-1) if flip else probability


def scaled_px(side_px: int, scale: float) -> int:
    """The length of a side at a scale, rounded up to a multiple of SIZE_MULTIPLE_PX."""
    if scale == 1:
        return side_px
    return -int(-side_px * scale // SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX
