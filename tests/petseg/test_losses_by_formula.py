"""Losses against their formulas, written out for one picture in numpy: several classes, weights, ignored pixels."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from petseg.data.inputs import IGNORE_INDEX
from petseg.losses import LOSSES, ClassTerms, cross_entropy, focal, soft_dice

Floats = NDArray[np.float64]
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0, 4.0])


def entropy_of(p: Floats, target: Floats, weight: Floats, gamma: float = 0.0) -> float:
    """Weighted mean over the pixels (n,) of -(1 - p) ** gamma * log p."""
    own = p[target, np.arange(len(target))]
    return float((weight * -((1 - own) ** gamma) * np.log(own)).sum() / weight.sum())


def dice_of(p: Floats, truth: Floats, weight: Floats) -> float:
    return float(1 - (2 * (weight * p * truth).sum() + 1) / ((weight * p).sum() + (weight * truth).sum() + 1))


def lovasz_of(p: Floats, truth: Floats, weight: Floats) -> float:
    """The area under 1 - IoU of the pixels whose error exceeds a threshold, as the threshold falls to 0."""
    p, truth, weight = p[weight > 0], truth[weight > 0], weight[weight > 0]
    errors = np.abs(truth - p)
    steps = np.append(np.sort(errors)[::-1], 0.0)
    area = 0.0
    for high, low in itertools.pairwise(steps):
        wrong = errors >= high
        union = (weight * (truth.astype(bool) | wrong)).sum()
        area += (high - low) * (1 - (weight * truth * ~wrong).sum() / union)
    return float(area)


def by_formula(name: str, logits: Floats, target: Floats, weight: Floats, classes: ClassTerms) -> float:
    """Loss of one picture: (K, n) logits, (n,) target and weights of pixels."""
    kept = target != IGNORE_INDEX
    logits, target, weight = logits[:, kept], target[kept], weight[kept]
    p = np.exp(logits) / np.exp(logits).sum(axis=0)
    of_classes = weight if classes.weights is None else weight * CLASS_WEIGHTS[target]
    truths = {one: (target == one).astype(np.float64) for one in classes.counted}
    overlap = float(np.mean([dice_of(p[one], truths[one], weight) for one in truths]))
    if name == "dice":
        return overlap
    if name == "lovasz":
        present = [one for one in truths if (truths[one] * weight).sum() > 0] or list(truths)
        return float(np.mean([lovasz_of(p[one], truths[one], weight) for one in present]))
    entropy = entropy_of(p, target, of_classes, gamma=2.0 if name == "focal" else 0.0)
    return entropy + (overlap if name == "ce_dice" else 0.0)


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures with every class, without class 2, with background alone, and with class 3 at weight 0 alone."""
    draw = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(4, 4, 5, 6, generator=draw, dtype=torch.float64)
    target = torch.randint(0, 4, (4, 5, 6), generator=draw)
    target[1][target[1] == 2] = 1
    target[2] = 0
    weight = torch.tensor([0.0, 0.25, 1.0, 3.0], dtype=torch.float64)[torch.randint(0, 4, (4, 5, 6), generator=draw)]
    weight[3][target[3] == 3] = 0.0
    target[:, 0, :3] = IGNORE_INDEX
    return logits, target, weight.masked_fill(target == IGNORE_INDEX, 0.0)


@pytest.mark.parametrize("of_class", [False, True], ids=["equal", "classes weighted"])
@pytest.mark.parametrize("weighted", [False, True], ids=["no weights", "weights"])
@pytest.mark.parametrize("counted", [(1,), (3,), (1, 2), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name: str, counted: tuple[int, ...], weighted: bool, of_class: bool) -> None:
    logits, target, weight = drawn()
    classes = ClassTerms(counted, torch.from_numpy(CLASS_WEIGHTS) if of_class else None)
    ours = LOSSES[name](logits, target, weight if weighted else None, classes=classes)
    flat = (weight if weighted else torch.ones_like(weight)).flatten(1).numpy()
    each = zip(logits.flatten(2).numpy(), target.flatten(1).numpy(), flat, strict=True)
    theirs = [by_formula(name, *picture, classes) for picture in each]
    assert ours.dtype == torch.float64
    assert ours.tolist() == pytest.approx(theirs, rel=1e-9)


def test_weights_of_pixels_are_products_and_zero_where_the_target_is_ignored() -> None:
    target = torch.tensor([[[0, 3, IGNORE_INDEX]]])
    weight = torch.tensor([[[3.0, 0.25, 8.0]]])
    classes = ClassTerms((1,), torch.tensor([0.5, 1.0, 2.0, 4.0]))
    assert classes.of_pixels(target, None).tolist() == [[[0.5, 4.0, 0.0]]]
    assert classes.of_pixels(target, weight).tolist() == [[[1.5, 1.0, 0.0]]]
    assert ClassTerms().of_pixels(target, None) is None
    assert ClassTerms().of_pixels(target, weight) is weight


def test_losses_of_pictures_without_a_weight_are_zero() -> None:
    logits, target, weight = drawn()
    for loss in (cross_entropy, focal, soft_dice):
        assert loss(logits, target, torch.zeros_like(weight)).tolist() == [0.0] * 4
