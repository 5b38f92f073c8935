"""Dice and IoU of the pet class, from counts of pixels per picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from petseg.data.inputs import IGNORE_INDEX

Floats = NDArray[np.float64]


def count_pixels(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) logits, (B, H, W) target -> (B, 3) int64: true positives, false positives, false negatives."""
    predicted = (logits.argmax(dim=1) == 1) & (target != IGNORE_INDEX)
    truth = target == 1
    counts = [predicted & truth, predicted & ~truth, ~predicted & truth]
    return torch.stack([count.sum(dim=(1, 2)) for count in counts], dim=1)


def dice_of(counts: torch.Tensor) -> torch.Tensor:
    """2 tp / (2 tp + fp + fn) of (..., 3) counts, float64; 1 where truth and prediction are both empty."""
    tp, fp, fn = counts.double().unbind(dim=-1)
    total = 2 * tp + fp + fn
    return torch.where(total > 0, 2 * tp / total.clamp(min=1), 1.0)


def iou_of(counts: torch.Tensor) -> torch.Tensor:
    """tp / (tp + fp + fn) of (..., 3) counts, float64; 1 where truth and prediction are both empty."""
    tp, fp, fn = counts.double().unbind(dim=-1)
    total = tp + fp + fn
    return torch.where(total > 0, tp / total.clamp(min=1), 1.0)


@dataclass(frozen=True)
class PerImage:
    """What was measured on each picture of a split, in the order of the split."""

    loss: Floats  # (N,)
    counts: NDArray[np.int64]  # (N, 3) true positives, false positives, false negatives
    pixels: int  # of one picture

    @property
    def dice(self) -> Floats:
        return dice_of(torch.from_numpy(self.counts)).numpy()

    @property
    def iou(self) -> Floats:
        return iou_of(torch.from_numpy(self.counts)).numpy()

    def summary(self, split: str) -> dict[str, float]:
        """Means over the pictures, and Dice and IoU of all pixels of the split together."""
        whole = torch.from_numpy(self.counts.sum(axis=0))
        return {
            f"{split}/loss": float(self.loss.mean()),
            f"{split}/dice": float(self.dice.mean()),
            f"{split}/iou": float(self.iou.mean()),
            f"{split}/dice_dataset": float(dice_of(whole)),
            f"{split}/iou_dataset": float(iou_of(whole)),
        }

    def all_pet_dice(self) -> float:
        """Mean Dice per picture of calling every pixel pet: what a model has to beat."""
        truth = self.counts[:, 0] + self.counts[:, 2]
        return float((2 * truth / (truth + self.pixels)).mean())
