"""Losses of segmentation: one value per sample, so that samples have equal weight in batches of any size.

Each takes logits (B, K, H, W), the target (B, H, W) int64 and the weights of pixels (B, H, W), 0 where the target is
ignored; without weights, all pixels that count have weight 1. Half-precision logits are converted to float32. The
losses of overlap are averaged over the classes `counted`: with two classes that is the second one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from petseg.config.training import TrainConfig
from petseg.data.inputs import IGNORE_INDEX

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ClassTerms:
    """How classes enter a loss."""

    counted: tuple[int, ...] = (1,)  # whose overlap is measured
    # (K,) float32 on the target's device: of a pixel of each class, in losses that are means over pixels
    weights: torch.Tensor | None = None

    def of_pixels(self, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor | None:
        """(B, H, W) weights of the pixels, with those of their classes; 0 where the target is ignored."""
        if self.weights is None:
            return weight
        counts = target != IGNORE_INDEX
        own = self.weights[torch.where(counts, target, 0)] * counts
        return own if weight is None else own * weight


BINARY = ClassTerms()


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    classes: ClassTerms = BINARY,
) -> torch.Tensor:
    """(B,) mean over the pixels; label_smoothing as in torch spreads that share of the truth over all classes."""
    return _mean(_cross_entropies(logits, target, label_smoothing), target, classes.of_pixels(target, weight))


def focal(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    gamma: float = 2.0,
    classes: ClassTerms = BINARY,
) -> torch.Tensor:
    """(B,) mean of -(1 - p) ** gamma * log p, where p is the probability of the true class.

    Lin et al. 2017; their alpha, which balances classes, is the weight of the class.
    """
    entropies = _cross_entropies(logits, target)
    wrong = -torch.expm1(-entropies)  # 1 - p, exact where it is small
    return _mean(wrong**gamma * entropies, target, classes.of_pixels(target, weight))


def soft_dice(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    smooth: float = 1.0,
    classes: ClassTerms = BINARY,
) -> torch.Tensor:
    """(B,) 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), the mean over the classes that count.

    Milletari et al. 2016 in the linear form of nnU-Net; p is the probability of the class, t its truth. With `smooth`,
    an empty prediction of an empty target has loss 0.
    """
    pixels = (target != IGNORE_INDEX) if weight is None else weight
    probability, truth = _of_classes(logits, target, classes.counted)
    if probability.ndim == 4:
        pixels, weight = pixels.unsqueeze(1), None if weight is None else weight.unsqueeze(1)
    if weight is not None:
        truth = truth * weight
    overlap = (probability * truth).sum(dim=(-2, -1))
    total = (probability * pixels).sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1))
    loss = 1 - (2 * overlap + smooth) / (total + smooth)
    return loss.mean(dim=1) if loss.ndim == 2 else loss


def ce_dice(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    classes: ClassTerms = BINARY,
) -> torch.Tensor:
    """(B,) cross-entropy plus soft Dice, the loss of nnU-Net; only the former weights classes."""
    entropy = cross_entropy(logits, target, weight, label_smoothing, classes)
    return entropy + soft_dice(logits, target, weight, classes=classes)


def lovasz(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, classes: ClassTerms = BINARY
) -> torch.Tensor:
    """(B,) Lovasz-softmax (Berman et al. 2018): 1 - IoU, extended from masks to probabilities.

    Each error |t - p|, largest first, is weighted by the growth of 1 - IoU when its pixel joins the wrong ones. With
    weights it extends the IoU of weighted pixels. It is the mean over the classes that count and that a picture has;
    where it has none of them, each class has its largest error.
    """
    probability, truth = (maps.flatten(-2) for maps in _of_classes(logits, target, classes.counted))
    weight = ((target != IGNORE_INDEX) if weight is None else weight).flatten(-2).to(probability.dtype)
    if probability.ndim == 3:
        weight = weight.unsqueeze(1).expand_as(probability)
    # a pixel of weight 0 must not come first, where the union becomes more than 0 and 1 - IoU grows at once
    errors, order = ((truth - probability).abs() * (weight > 0)).sort(dim=-1, descending=True)
    weight, truth = weight.gather(-1, order), truth.gather(-1, order)
    size = (weight * truth).sum(dim=-1, keepdim=True)
    intersection = size - (weight * truth).cumsum(dim=-1)
    union = size + (weight * (1 - truth)).cumsum(dim=-1)
    jaccard = 1 - intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
    growth = torch.diff(jaccard, dim=-1, prepend=torch.zeros_like(size))
    loss = (errors * growth).sum(dim=-1)
    if loss.ndim == 1:
        return loss
    present = (size.squeeze(-1) > 0).to(loss.dtype)
    share = torch.where(present.sum(dim=1, keepdim=True) > 0, present, 1.0)
    return (loss * share).sum(dim=1) / share.sum(dim=1)


def distillation(
    logits: torch.Tensor, teacher_logits: torch.Tensor, target: torch.Tensor, temperature: float
) -> torch.Tensor:
    """(B,) T^2 KL(teacher || student), the mean over the pixels that are not ignored (Hinton et al. 2015).

    Both probabilities are softmax(logits / T). The gradient of the KL falls with T^2, which the factor undoes, so that
    the weight of the term means the same at each temperature.
    """
    student = F.log_softmax(_precise(logits) / temperature, dim=1)
    teacher = F.log_softmax(_precise(teacher_logits) / temperature, dim=1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=1)  # (B, H, W)
    return temperature**2 * _mean(divergence.masked_fill(target == IGNORE_INDEX, 0.0), target, None)


def pixel_weights(target: torch.Tensor, edge_weight: float, reach_px: int) -> torch.Tensor:
    """(B, H, W) float: 0 where the target is ignored, edge_weight near where it changes, 1 elsewhere.

    Near: another value, the ignored one included, lies within reach_px in height and in width.
    """
    values = target.float().unsqueeze(1)
    highest, lowest = _highest_near(values, reach_px), -_highest_near(-values, reach_px)
    weight = torch.where(highest == lowest, 1.0, edge_weight).squeeze(1)
    return weight.masked_fill(target == IGNORE_INDEX, 0.0)


def _highest_near(values: torch.Tensor, reach_px: int) -> torch.Tensor:
    """(B, 1, H, W) largest value within a square, by rows and then by columns, which is faster."""
    side = 2 * reach_px + 1
    by_row = F.max_pool2d(values, (1, side), stride=1, padding=(0, reach_px))
    return F.max_pool2d(by_row, (side, 1), stride=1, padding=(reach_px, 0))


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "ce": cross_entropy,
    "dice": soft_dice,
    "ce_dice": ce_dice,
    "focal": focal,
    "lovasz": lovasz,
}


def build_loss(config: TrainConfig, classes: ClassTerms = BINARY) -> Loss:
    """The config's loss with its settings: (B, K, H, W) logits, (B, H, W) int64 -> (B,)."""
    settings: dict[str, Any] = {} if classes == BINARY else {"classes": classes}
    if config.loss == "focal":
        settings["gamma"] = config.focal_gamma
    elif config.label_smoothing:
        settings["label_smoothing"] = config.label_smoothing
    chosen: Callable[..., torch.Tensor] = LOSSES[config.loss]
    loss = partial(chosen, **settings)
    if config.border_weight == 1:
        return loss
    return lambda logits, target: loss(logits, target, pixel_weights(target, config.border_weight, config.border_px))


def _of_classes(
    logits: torch.Tensor, target: torch.Tensor, counted: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and truth of some classes: (B, H, W) each of a single one, (B, C, H, W) of several."""
    probability = _precise(logits).softmax(dim=1)
    if len(counted) == 1:
        probability = probability[:, counted[0]]
        return probability, (target == counted[0]).to(probability.dtype)
    # by one class after the other: indices would be copied to the device, which a CUDA graph cannot hold
    chosen = torch.stack([probability[:, one] for one in counted], dim=1)
    return chosen, torch.stack([target == one for one in counted], dim=1).to(probability.dtype)


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
