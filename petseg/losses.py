"""Losses of binary segmentation: one value per sample, so that a batch of any size weighs each sample alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from petseg.data.inputs import IGNORE_INDEX

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) logits, (B, H, W) int64 -> (B,) mean over the pixels that count."""
    pixels = F.cross_entropy(logits.float(), target, ignore_index=IGNORE_INDEX, reduction="none")
    counted = (target != IGNORE_INDEX).sum(dim=(1, 2)).clamp(min=1)
    return pixels.sum(dim=(1, 2)) / counted


def soft_dice(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth) of class 1: (B,).

    Milletari et al. 2016 in the linear form of nnU-Net; p is the probability of class 1. `smooth` makes a right
    empty prediction of an empty target cost nothing.
    """
    counted = target != IGNORE_INDEX
    probability = logits.float().softmax(dim=1)[:, 1] * counted
    truth = (target == 1).float()
    overlap = (probability * truth).sum(dim=(1, 2))
    total = probability.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def ce_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice, the loss of nnU-Net: (B,)."""
    return cross_entropy(logits, target) + soft_dice(logits, target)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dice": soft_dice, "ce_dice": ce_dice}
