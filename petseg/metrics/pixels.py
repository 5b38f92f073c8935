"""Dice and IoU from counts of pixels, per picture and class.

A picture's Dice is the mean over the classes that count and that are in its truth or in its prediction; 1 where none of
them is in either. With a background and one other class it is the Dice of the other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from petseg.config.sizes import Fit, Size
from petseg.data.inputs import IGNORE_INDEX
from petseg.data.letterbox import without_margins

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def predicted_classes(logits: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) logits -> (B, H, W) uint8: the class with the largest one, the first of several.

    On CPUs argmax across planes is not vectorised. A 500 x 375 picture takes 33 to 38 ms with it; the indices of max,
    which are the same, take 1.6 ms with 3 classes and 3.6 ms with 12, and the comparison of two classes 0.1 ms.
    """
    if logits.shape[1] == 2:
        return (logits[:, 1] > logits[:, 0]).to(torch.uint8)
    return logits.max(dim=1).indices.to(torch.uint8)


def to_native(logits: torch.Tensor, size: Size, fit: Fit = "squash") -> torch.Tensor:
    """(K, h, w) logits of one picture -> (1, K, H, W) float32, bilinear: the squash or the letterbox is undone."""
    if fit == "letterbox":
        logits = without_margins(logits, size)
    return F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)


def count_pixels(logits: torch.Tensor, target: torch.Tensor, counted: Sequence[int] = (1,)) -> torch.Tensor:
    """(B, K, H, W) logits, (B, H, W) target -> (B, C, 3) int64, as `count_classes`."""
    return count_classes(predicted_classes(logits), target, counted)


def count_classes(prediction: torch.Tensor, target: torch.Tensor, counted: Sequence[int] = (1,)) -> torch.Tensor:
    """(B, H, W) predicted and true classes -> (B, C, 3) int64 of each counted class: true positives, false positives,
    false negatives. Pixels that the target ignores do not count."""
    counts = target != IGNORE_INDEX
    return torch.stack([count_masks((prediction == one) & counts, target == one) for one in counted], dim=1)


def count_masks(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """(B, H, W) bool masks -> (B, 3) int64: true positives, false positives, false negatives."""
    counts = [prediction & truth, prediction & ~truth, ~prediction & truth]
    return torch.stack([count.sum(dim=(1, 2)) for count in counts], dim=1)


def confusion_of(prediction: torch.Tensor, target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(B, H, W) predicted and true classes -> (K, K) int64: pixels by true class (rows) and predicted class."""
    counts = target != IGNORE_INDEX
    pairs = target[counts].long() * num_classes + prediction[counts].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


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


def picture_dice(counts: torch.Tensor) -> torch.Tensor:
    """(..., C, 3) counts -> (...) Dice of each picture."""
    return mean_over_classes(dice_of(counts), counts, empty=1.0)


def picture_iou(counts: torch.Tensor) -> torch.Tensor:
    """(..., C, 3) counts -> (...) IoU of each picture."""
    return mean_over_classes(iou_of(counts), counts, empty=1.0)


def mean_over_classes(values: torch.Tensor, counts: torch.Tensor, empty: float) -> torch.Tensor:
    """(..., C) values and (..., C, 3) counts -> (...) mean over the classes in truth or prediction; `empty` without."""
    if values.shape[-1] == 1:
        return values[..., 0]
    present = (counts.sum(dim=-1) > 0).to(values.dtype)
    number = present.sum(dim=-1)
    return torch.where(number > 0, (values * present).sum(dim=-1) / number.clamp(min=1), empty)


@dataclass(frozen=True)
class Counted:
    """Pixels of each picture of a split, in the order of the split."""

    counts: Counts  # (N, C, 3) true positives, false positives, false negatives of each class that counts

    @property
    def dice(self) -> Floats:
        """(N,) of each picture."""
        return picture_dice(torch.from_numpy(self.counts)).numpy()

    @property
    def iou(self) -> Floats:
        """(N,) of each picture."""
        return picture_iou(torch.from_numpy(self.counts)).numpy()

    @property
    def class_dice(self) -> Floats:
        """(N, C) of each picture and class; NaN where the class is in neither truth nor prediction."""
        return np.where(self.present, dice_of(torch.from_numpy(self.counts)).numpy(), np.nan)

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N, C) whether a class is in a picture's truth or prediction."""
        return self.counts.sum(axis=-1) > 0

    def means(self) -> dict[str, float]:
        """Means over the pictures; and over the classes, the Dice and IoU of all pixels of the split together."""
        whole = torch.from_numpy(self.counts.sum(axis=0))
        return {
            "dice": float(self.dice.mean()),
            "iou": float(self.iou.mean()),
            "dice_dataset": float(picture_dice(whole)),
            "iou_dataset": float(picture_iou(whole)),
        }


@dataclass(frozen=True)
class Scores(Counted):
    """Pixels and outlines of each picture and class, by one rule and at one size."""

    boundary_iou: Floats  # (N, C)
    hd95_px: Floats  # (N, C)

    def means(self) -> dict[str, float]:
        outlines = {
            "boundary_iou": float(self.picture_boundary_iou.mean()),
            "hd95_px": float(self.picture_hd95_px.mean()),
        }
        return super().means() | outlines

    @property
    def picture_boundary_iou(self) -> Floats:
        """(N,)"""
        return self._mean(self.boundary_iou, empty=1.0)

    @property
    def picture_hd95_px(self) -> Floats:
        """(N,)"""
        return self._mean(self.hd95_px, empty=0.0)

    def of(self, positions: NDArray[np.int64]) -> Scores:
        """The scores of some of the pictures."""
        return Scores(self.counts[positions], self.boundary_iou[positions], self.hd95_px[positions])

    def of_class(self, number: int) -> dict[str, float]:
        """The means of one of the counted classes, over the pictures with it in truth or prediction; NaN without."""
        present = self.present[:, number]
        counts = torch.from_numpy(self.counts[present, number])
        whole = counts.sum(dim=0)
        values = {
            "dice": dice_of(counts).numpy(),
            "iou": iou_of(counts).numpy(),
            "boundary_iou": self.boundary_iou[present, number],
            "hd95_px": self.hd95_px[present, number],
        }
        means = {name: float(column.mean()) if len(column) else float("nan") for name, column in values.items()}
        if not present.any():
            return means | {"dice_dataset": float("nan"), "iou_dataset": float("nan")}
        return means | {"dice_dataset": float(dice_of(whole)), "iou_dataset": float(iou_of(whole))}

    def _mean(self, values: Floats, empty: float) -> Floats:
        return mean_over_classes(torch.from_numpy(values), torch.from_numpy(self.counts), empty).numpy()


@dataclass(frozen=True)
class PerImage(Counted):
    """What validation during training measures on each picture."""

    loss: Floats  # (N,)
    pixels: Floats | int  # (N,) of each picture, or of any

    def summary(self, split: str) -> dict[str, float]:
        return prefixed(split, {"loss": float(self.loss.mean())} | self.means())

    def one_class_dice(self) -> float:
        """Mean Dice per picture if every pixel gets the same class, the best for that: the baseline of any model."""
        truth = (self.counts[..., 0] + self.counts[..., 2]).astype(np.float64)  # (N, C)
        own = 2 * truth / (truth + np.reshape(self.pixels, (-1, 1)))
        classes = (truth > 0).sum(axis=1, keepdims=True) + (truth == 0)  # with the one that is called everywhere
        return float((own / classes).mean(axis=0).max())


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
