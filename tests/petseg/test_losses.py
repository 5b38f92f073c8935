import math

import pytest
import torch

from petseg.data.inputs import IGNORE_INDEX, build_target
from petseg.losses import LOSSES, ce_dice, cross_entropy, soft_dice

VALUES = {"pet": 1, "background": 2, "border": 3}


def certain(mask: torch.Tensor) -> torch.Tensor:
    """(B, H, W) mask -> logits (B, 2, H, W) that are sure of it."""
    return torch.stack([20.0 * (1 - mask), 20.0 * mask], dim=1)


def test_cross_entropy_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = math.log(3)  # p(pet) = 3/4 in the first pixel, 1/2 in the second
    target = torch.tensor([[[1, 0]]])
    assert cross_entropy(logits, target).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_soft_dice_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = math.log(3)
    target = torch.tensor([[[1, 0]]])
    # overlap 3/4, sum of p 3/4 + 1/2, sum of t 1
    assert soft_dice(logits, target, smooth=0.0).item() == pytest.approx(1 - 1.5 / 2.25)
    assert soft_dice(logits, target).item() == pytest.approx(1 - 2.5 / 3.25)


def test_ce_dice_is_their_sum() -> None:
    logits, target = torch.randn(3, 2, 4, 4), torch.randint(0, 2, (3, 4, 4))
    torch.testing.assert_close(ce_dice(logits, target), cross_entropy(logits, target) + soft_dice(logits, target))


@pytest.mark.parametrize("name", LOSSES)
def test_one_value_per_sample_whatever_else_is_in_the_batch(name: str) -> None:
    """The lab averaged batch means: a last batch of 8 weighed as much as one of 20."""
    logits, target = torch.randn(5, 2, 8, 8), torch.randint(0, 2, (5, 8, 8))
    together = LOSSES[name](logits, target)
    alone = torch.cat([LOSSES[name](logits[i : i + 1], target[i : i + 1]) for i in range(5)])
    assert together.shape == (5,)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", LOSSES)
def test_better_predictions_cost_less_and_ignored_pixels_nothing(name: str) -> None:
    truth = (torch.rand(2, 16, 16) > 0.5).float()
    half = truth.clone()
    half[:, :8] = 1 - half[:, :8]
    good, bad, worst = (LOSSES[name](certain(m), truth.long()) for m in (truth, half, 1 - truth))
    assert (good < bad).all()
    assert (bad < worst).all()
    target = truth.long()
    target[:, :8] = IGNORE_INDEX
    torch.testing.assert_close(LOSSES[name](certain(half), target), LOSSES[name](certain(truth), target))


@pytest.mark.parametrize("name", LOSSES)
def test_a_picture_without_pet_or_without_any_counted_pixel_is_no_nan(name: str) -> None:
    empty = torch.zeros(1, 8, 8)
    assert LOSSES[name](certain(empty), empty.long()).item() == pytest.approx(0, abs=1e-4)
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    LOSSES[name](logits, torch.full((1, 8, 8), IGNORE_INDEX)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_border_rule() -> None:
    trimap = torch.tensor([[[1, 2, 3]]], dtype=torch.uint8)
    assert build_target(trimap, "fg", VALUES).tolist() == [[[1, 0, 1]]]
    assert build_target(trimap, "bg", VALUES).tolist() == [[[1, 0, 0]]]
    assert build_target(trimap, "ignore", VALUES).tolist() == [[[1, 0, IGNORE_INDEX]]]
