"""Losses with several classes: which of them count, with what weights, and what a teacher says of them."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from petseg.config.training import TrainConfig
from petseg.data.inputs import IGNORE_INDEX
from petseg.losses import (
    LOSSES,
    ClassTerms,
    build_loss,
    distillation,
    lovasz,
    pixel_weights,
    soft_dice,
)

STREET = ClassTerms((1, 2, 3))


def of_one_class(logits: torch.Tensor, target: torch.Tensor, one: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two-class logits and target with the probability and truth of one class among several."""
    probability = logits.softmax(dim=1)[:, one]
    truth = torch.where(target == IGNORE_INDEX, IGNORE_INDEX, (target == one).long())
    return torch.stack([1 - probability, probability], dim=1).log(), truth


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_losses_of_overlap_are_means_over_the_classes_that_count(name: str) -> None:
    """Each class by itself is a loss of two classes, as test_losses.py has them. Every class is in each target."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 8, 8, generator=draw, dtype=torch.float64)
    target = torch.randint(0, 4, (3, 8, 8), generator=draw)
    target[:, :2] = IGNORE_INDEX
    alone = torch.stack([LOSSES[name](*of_one_class(logits, target, one)) for one in STREET.counted])
    torch.testing.assert_close(LOSSES[name](logits, target, classes=STREET), alone.mean(dim=0))


def test_lovasz_leaves_out_classes_that_the_picture_lacks() -> None:
    logits = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = torch.arange(64).view(1, 8, 8) % 3  # no class 3
    alone = torch.stack([lovasz(*of_one_class(logits, target, one)) for one in (1, 2)])
    torch.testing.assert_close(lovasz(logits, target, classes=STREET), alone.mean(dim=0))
    nothing = lovasz(logits, torch.zeros(1, 8, 8, dtype=torch.int64), classes=STREET)
    assert nothing.item() == pytest.approx(logits.softmax(dim=1)[:, 1:].flatten(2).amax(dim=2).mean().item())


def test_soft_dice_is_that_of_segmentation_models_pytorch() -> None:
    draw = torch.Generator().manual_seed(3)
    logits, target = torch.randn(1, 4, 16, 16, generator=draw), torch.randint(0, 4, (1, 16, 16), generator=draw)
    theirs = smp.losses.DiceLoss("multiclass", classes=[1, 2, 3])(logits, target)
    torch.testing.assert_close(soft_dice(logits, target, smooth=0.0, classes=STREET)[0], theirs)


@pytest.mark.parametrize("name", ["ce", "ce_dice", "focal"])
def test_weights_of_classes_are_those_of_torch(name: str) -> None:
    draw = torch.Generator().manual_seed(4)
    logits, target = torch.randn(2, 4, 8, 8, generator=draw), torch.randint(0, 4, (2, 8, 8), generator=draw)
    target[0, :3] = IGNORE_INDEX
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    classes = ClassTerms((1, 2, 3), weights)
    ours = LOSSES[name](logits, target, classes=classes)
    theirs = (
        torch.stack(
            [
                F.cross_entropy(logits[i : i + 1], target[i : i + 1], weights, ignore_index=IGNORE_INDEX)
                for i in range(2)
            ]
        )
        if name != "focal"
        else torch.stack([_weighted_focal(logits[i], target[i], weights) for i in range(2)])
    )
    if name == "ce_dice":
        theirs = theirs + soft_dice(logits, target, classes=STREET)
    torch.testing.assert_close(ours, theirs)
    equal = LOSSES[name](logits, target, classes=ClassTerms((1, 2, 3), torch.ones(4)))
    torch.testing.assert_close(equal, LOSSES[name](logits, target, classes=STREET))


def _weighted_focal(logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """By the formula, of one picture (K, H, W)."""
    counts = target != IGNORE_INDEX
    probability = logits.softmax(dim=0).permute(1, 2, 0)[counts].gather(1, target[counts][:, None]).squeeze(1)
    weight = weights[target[counts]]
    return (-weight * (1 - probability) ** 2 * probability.log()).sum() / weight.sum()


def test_distillation_by_hand() -> None:
    """One pixel of probabilities 3/4 and 1/4 against 1/2 each, beside one that is ignored."""
    teacher = torch.tensor([0.75, 0.25]).log().view(1, 2, 1, 1).repeat(1, 1, 1, 2)
    student = torch.zeros(1, 2, 1, 2)
    student[0, :, 0, 1] = torch.tensor([50.0, -50.0])
    target = torch.tensor([[[0, IGNORE_INDEX]]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation(student, teacher, target, 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert distillation(teacher, teacher, target, 3.0).item() == 0
    assert distillation(student, teacher, torch.full_like(target, IGNORE_INDEX), 1.0).item() == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_of_torch(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, 4, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    target = torch.randint(0, 5, (3, 4, 6), generator=draw)
    soft = [(logits / temperature).log_softmax(1) for logits in (student, teacher)]
    pixels = F.kl_div(*soft, reduction="none", log_target=True).sum(1)
    expected = temperature**2 * pixels.mean(dim=(1, 2))
    torch.testing.assert_close(distillation(student, teacher, target, temperature), expected)


def test_distillation_weighs_about_the_same_at_each_temperature() -> None:
    """The gradient tends to (z - v) / K as T grows (Hinton et al. 2015), for logits z and v of mean 0."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 5, 1, 1, generator=draw, dtype=torch.float64) for _ in range(2))
    student, teacher = (logits - logits.mean() for logits in (student, teacher))
    student.requires_grad_()
    distillation(student, teacher, torch.zeros(1, 1, 1, dtype=torch.int64), 1e4).sum().backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 5, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ce", "focal", "ce_dice"])
def test_two_classes_can_be_weighted_too(name: str) -> None:
    draw = torch.Generator().manual_seed(5)
    logits, target = torch.randn(2, 2, 6, 6, generator=draw), torch.randint(0, 2, (2, 6, 6), generator=draw)
    weighted = build_loss(TrainConfig(loss=name), ClassTerms((1,), torch.tensor([1.0, 3.0])))(logits, target)
    by_pixel = LOSSES[name](logits, target, torch.where(target == 1, 3.0, 1.0))
    if name == "ce_dice":  # whose overlap has no weights
        by_pixel = LOSSES["ce"](logits, target, torch.where(target == 1, 3.0, 1.0)) + soft_dice(logits, target)
    torch.testing.assert_close(weighted, by_pixel)
    assert not torch.allclose(weighted, build_loss(TrainConfig(loss=name))(logits, target))


def test_weights_near_outlines_and_of_classes_are_multiplied() -> None:
    draw = torch.Generator().manual_seed(6)
    logits, target = torch.randn(1, 3, 8, 8, generator=draw), torch.zeros(1, 8, 8, dtype=torch.int64)
    target[0, :, 3:6], target[0, 7] = 2, IGNORE_INDEX
    classes = ClassTerms((1, 2), torch.tensor([0.5, 1.0, 4.0]))
    config = TrainConfig(loss="ce", border_weight=3.0, border_px=1)
    near = pixel_weights(target, 3.0, 1)
    assert near.unique().tolist() == [0.0, 1.0, 3.0]
    own = torch.where(target == 2, 4.0, 0.5)
    torch.testing.assert_close(build_loss(config, classes)(logits, target), LOSSES["ce"](logits, target, near * own))


def test_a_teacher_of_half_precision_is_computed_on_in_float32() -> None:
    draw = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=draw).bfloat16() for _ in range(2))
    target = torch.randint(0, 3, (2, 4, 4), generator=draw)
    found = distillation(student, teacher, target, 2.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, distillation(student.float(), teacher.float(), target, 2.0))
