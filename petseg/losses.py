"""Losses of binary segmentation: one value per sample, so that samples have equal weight in batches of any size.

Each takes logits (B, C, H, W), the target (B, H, W) int64 and the weights of pixels (B, H, W), 0 where the target is
ignored; without weights, all pixels that count have weight 1. Half-precision logits are converted to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from petseg.config import TrainConfig
from petseg.data.inputs import IGNORE_INDEX

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """(B,) mean over the pixels; label_smoothing as in torch spreads that share of the truth over all classes."""
    return _mean(_cross_entropies(logits, target, label_smoothing), target, weight)


def focal(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, gamma: float = 2.0
) -> torch.Tensor:
    """(B,) mean of -(1 - p) ** gamma * log p, where p is the probability of the true class.

    Lin et al. 2017 without alpha, which balances classes: pet and background are of similar size.
    """
    entropies = _cross_entropies(logits, target)
    wrong = -torch.expm1(-entropies)  # 1 - p, exact where it is small
    return _mean(wrong**gamma * entropies, target, weight)


def soft_dice(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, smooth: float = 1.0
) -> torch.Tensor:
    """(B,) 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth) of class 1.

    Milletari et al. 2016 in the linear form of nnU-Net; p is the probability of class 1. With `smooth`, an
    empty prediction of an empty target has loss 0.
    """
    counted = (target != IGNORE_INDEX) if weight is None else weight
    probability = _precise(logits).softmax(dim=1)[:, 1]
    truth = (target == 1).to(probability.dtype)
    if weight is not None:
        truth = truth * weight
    overlap = (probability * truth).sum(dim=(1, 2))
    total = (probability * counted).sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def ce_dice(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """(B,) cross-entropy plus soft Dice, the loss of nnU-Net."""
    return cross_entropy(logits, target, weight, label_smoothing) + soft_dice(logits, target, weight)


def lovasz(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """(B,) Lovasz-softmax of class 1 (Berman et al. 2018): 1 - IoU, extended from masks to probabilities.

    Each error |t - p|, largest first, is weighted by the growth of 1 - IoU when its pixel joins the wrong ones. With
    weights it extends the IoU of weighted pixels. For an empty target it is the largest error.
    """
    probability = _precise(logits).softmax(dim=1)[:, 1].flatten(1)  # (B, H * W)
    weight = (target != IGNORE_INDEX) if weight is None else weight
    weight, truth = weight.flatten(1).to(probability.dtype), (target == 1).flatten(1).to(probability.dtype)
    # a pixel of weight 0 must not come first, where the union becomes more than 0 and 1 - IoU grows at once
    errors, order = ((truth - probability).abs() * (weight > 0)).sort(dim=1, descending=True)
    weight, truth = weight.gather(1, order), truth.gather(1, order)
    pet = (weight * truth).sum(dim=1, keepdim=True)
    intersection = pet - (weight * truth).cumsum(dim=1)
    union = pet + (weight * (1 - truth)).cumsum(dim=1)
    jaccard = 1 - intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
    growth = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(pet))
    return (errors * growth).sum(dim=1)


def pixel_weights(target: torch.Tensor, border_weight: float, border_px: int) -> torch.Tensor:
    """(B, H, W) float: 0 where the target is ignored, border_weight near where it changes, 1 elsewhere.

    Near: another value, the ignored one included, lies within border_px in height and in width.
    """
    values = target.float().unsqueeze(1)
    highest, lowest = _highest_near(values, border_px), -_highest_near(-values, border_px)
    weight = torch.where(highest == lowest, 1.0, border_weight).squeeze(1)
    return weight.masked_fill(target == IGNORE_INDEX, 0.0)


def _highest_near(values: torch.Tensor, border_px: int) -> torch.Tensor:
    """(B, 1, H, W) largest value within a square, by rows and then by columns, which is faster."""
    side = 2 * border_px + 1
    by_row = F.max_pool2d(values, (1, side), stride=1, padding=(0, border_px))
    return F.max_pool2d(by_row, (side, 1), stride=1, padding=(border_px, 0))


LOSSES = {"ce": cross_entropy, "dice": soft_dice, "ce_dice": ce_dice, "focal": focal, "lovasz": lovasz}


def build_loss(config: TrainConfig) -> Loss:
    """The config's loss with its settings: (B, C, H, W) logits, (B, H, W) int64 -> (B,)."""
    settings: dict[str, Any] = {}
    if config.loss == "focal":
        settings["gamma"] = config.focal_gamma
    elif config.label_smoothing:
        settings["label_smoothing"] = config.label_smoothing
    loss: Callable[..., torch.Tensor] = partial(LOSSES[config.loss], **settings)
    if config.border_weight == 1:
        return loss
    return lambda logits, target: loss(logits, target, pixel_weights(target, config.border_weight, config.border_px))


def _precise(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _cross_entropies(logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """(B, H, W) cross-entropy of each pixel, 0 where it is ignored."""
    return F.cross_entropy(
        _precise(logits), target, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=label_smoothing
    )


def _mean(pixels: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """(B,) weighted mean; 0 if all weights are 0."""
    if weight is None:
        return pixels.sum(dim=(1, 2)) / (target != IGNORE_INDEX).sum(dim=(1, 2)).clamp(min=1)
    total = weight.sum(dim=(1, 2))
    return (pixels * weight).sum(dim=(1, 2)) / total.clamp(min=torch.finfo(total.dtype).tiny)
