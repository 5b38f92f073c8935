import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from petseg.config.training import TrainConfig
from petseg.data.inputs import IGNORE_INDEX
from petseg.losses import (
    LOSSES,
    ClassTerms,
    build_loss,
    ce_dice,
    cross_entropy,
    focal,
    lovasz,
    pixel_weights,
    soft_dice,
)

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
def test_a_samples_loss_does_not_depend_on_its_batch(name: str) -> None:
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


def test_label_smoothing_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 1)
    logits[0, 1] = math.log(3)  # p(pet) = 3/4
    target = torch.ones(1, 1, 1, dtype=torch.long)
    expected = 0.9 * math.log(4 / 3) + 0.1 * (math.log(4 / 3) + math.log(4)) / 2
    assert cross_entropy(logits, target, label_smoothing=0.1).item() == pytest.approx(expected)


def test_focal_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 0] = math.log(3)
    target = torch.tensor([[[1, 0]]])  # p of the truth: 3/4 and 1/2
    by_hand = ((1 / 4) ** 2 * math.log(4 / 3) + (1 / 2) ** 2 * math.log(2)) / 2
    assert focal(logits, target).item() == pytest.approx(by_hand)


def test_lovasz_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1, 0] = torch.tensor([0.0, -math.log(3), -math.log(9)])  # p(pet) = 1/2, 1/4, 1/10
    target = torch.tensor([[[1, 0, 1]]])
    # errors 9/10 (pet), 1/2 (pet), 1/4 (background); 1 - IoU of these wrong: 1/2, 1, 1
    assert lovasz(logits, target).item() == pytest.approx(9 / 10 * 1 / 2 + 1 / 2 * 1 / 2)
    # the first pet pixel counts 3, so the second is 1/4 of the pet; then all of it is wrong
    weight = torch.tensor([[[3.0, 1.0, 1.0]]])
    assert lovasz(logits, target, weight).item() == pytest.approx(9 / 10 * 1 / 4 + 1 / 2 * 3 / 4)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_is_torchvisions(gamma: float) -> None:
    logits, target = torch.randn(4, 2, 8, 8) * 5, torch.randint(0, 2, (4, 8, 8))
    theirs = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], target.float(), alpha=-1, gamma=gamma)
    torch.testing.assert_close(focal(logits, target, gamma=gamma), theirs.mean(dim=(1, 2)))


def test_peers_agree() -> None:
    """segmentation-models-pytorch, one sample at a time, ignored pixels among them."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    from segmentation_models_pytorch.losses.lovasz import _lovasz_softmax

    logits, target = torch.randn(5, 2, 12, 12), torch.randint(0, 2, (5, 12, 12))
    target[:, :3] = IGNORE_INDEX
    margin = logits[:, 1:] - logits[:, :1]  # (B, 1, H, W)
    dice = smp.losses.DiceLoss("binary", smooth=0.5, ignore_index=IGNORE_INDEX)  # it halves all terms
    focal_loss = smp.losses.FocalLoss("binary", ignore_index=IGNORE_INDEX)
    for name, peer in {
        "dice": lambda i: dice(margin[i : i + 1], target[i : i + 1]),
        "focal": lambda i: focal_loss(margin[i : i + 1], target[i : i + 1]),
        "lovasz": lambda i: _lovasz_softmax(
            logits[i : i + 1].softmax(dim=1), target[i : i + 1], classes=[1], ignore=IGNORE_INDEX
        ),
    }.items():
        theirs = torch.stack([peer(i) for i in range(5)])
        torch.testing.assert_close(LOSSES[name](logits, target), theirs, msg=lambda m, name=name: f"{name}: {m}")


@given(st.lists(st.sampled_from([0, 1, IGNORE_INDEX]), min_size=1, max_size=12), st.data())
def test_lovasz_of_a_mask_is_one_minus_its_iou(truth: list[int], data: st.DataObject) -> None:
    mask = data.draw(st.lists(st.integers(0, 1), min_size=len(truth), max_size=len(truth)))
    logits = certain(torch.tensor([[mask]], dtype=torch.float32)) * 5
    counted = [(t, p) for t, p in zip(truth, mask, strict=True) if t != IGNORE_INDEX]
    union = sum(t or p for t, p in counted)
    iou = sum(t and p for t, p in counted) / union if union else 1.0
    assert lovasz(logits, torch.tensor([[truth]])).item() == pytest.approx(1 - iou, abs=1e-6)


WEIGHTS = torch.tensor([0.0, 0.5, 1.0, 3.0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str, weighted: bool) -> None:
    logits = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (2, 4, 5))
    target[:, 0, :2] = IGNORE_INDEX
    weight = WEIGHTS.double()[torch.randint(0, 4, (2, 4, 5))].masked_fill(target == IGNORE_INDEX, 0.0)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target, weight if weighted else None), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_is_how_often_a_pixel_counts(name: str) -> None:
    """Whole weights are copies of the pixel, weight 0 is an ignored pixel."""
    logits, target = torch.randn(1, 2, 1, 30), torch.randint(0, 2, (1, 1, 30))
    times = torch.randint(0, 4, (30,))
    weighted = LOSSES[name](logits, target, times.float().view(1, 1, 30))
    copied = LOSSES[name](logits.repeat_interleave(times, dim=3), target.repeat_interleave(times, dim=2))
    torch.testing.assert_close(weighted, copied)
    kept = target.masked_fill(times == 0, IGNORE_INDEX)
    torch.testing.assert_close(
        LOSSES[name](logits, target, (times > 0).view(1, 1, 30).float()), LOSSES[name](logits, kept)
    )


@given(st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_the_border_is_where_another_value_is_near(border_px: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.tensor([0, 1, IGNORE_INDEX])[torch.randint(0, 3, (2, 3, 4), generator=random)]
    target = coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)  # (2, 12, 16)
    weight = pixel_weights(target, 5.0, border_px)
    for i, y, x in itertools.product(range(2), range(12), range(16)):
        window = target[i, max(0, y - border_px) : y + border_px + 1, max(0, x - border_px) : x + border_px + 1]
        own = target[i, y, x]
        expected = 0.0 if own == IGNORE_INDEX else 1.0 if (window == own).all() else 5.0
        assert weight[i, y, x] == expected


def test_the_config_builds_the_loss() -> None:
    logits, target = torch.randn(3, 2, 16, 16), torch.zeros(3, 16, 16, dtype=torch.long)
    target[:, 4:12, 4:12] = 1
    built = {
        "ce": build_loss(TrainConfig()),
        "smoothed": build_loss(TrainConfig(loss="ce_dice", label_smoothing=0.1)),
        "focal": build_loss(TrainConfig(loss="focal", focal_gamma=3.0)),
        "border": build_loss(TrainConfig(loss="lovasz", border_weight=4.0, border_px=2)),
    }
    found = {name: loss(logits, target) for name, loss in built.items()}
    entropies = F.cross_entropy(logits, target, reduction="none").mean(dim=(1, 2))
    assert torch.equal(found["ce"], entropies) or torch.allclose(found["ce"], entropies)
    torch.testing.assert_close(found["smoothed"], ce_dice(logits, target, label_smoothing=0.1))
    torch.testing.assert_close(found["focal"], focal(logits, target, gamma=3.0))
    torch.testing.assert_close(found["border"], lovasz(logits, target, pixel_weights(target, 4.0, 2)))


@pytest.mark.parametrize("name", LOSSES)
def test_the_config_builds_the_loss_of_its_classes(name: str) -> None:
    logits, target = torch.randn(3, 4, 8, 8), torch.randint(0, 4, (3, 8, 8))
    classes = ClassTerms((1, 2, 3), torch.tensor([0.1, 1.0, 2.0, 3.0]))
    found = build_loss(TrainConfig(loss=name), classes)(logits, target)
    torch.testing.assert_close(found, LOSSES[name](logits, target, classes=classes))
    assert not torch.allclose(found, build_loss(TrainConfig(loss=name))(logits, target))


def test_half_precision_logits_are_computed_on_in_float32() -> None:
    logits, target = torch.randn(2, 2, 8, 8).bfloat16(), torch.randint(0, 2, (2, 8, 8))
    for loss in LOSSES.values():
        assert loss(logits, target).dtype == torch.float32
        torch.testing.assert_close(loss(logits, target), loss(logits.float(), target))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "focal", "label_smoothing": 0.1}, "train.loss = focal has no labels to smooth"),
        ({"label_smoothing": 1.0}, r"train.label_smoothing = 1.0: must lie in \[0, 1\)"),
        ({"focal_gamma": 0.5}, "train.focal_gamma = 0.5: must be at least 1"),
        ({"border_weight": -1.0}, "train.border_weight = -1.0: must not be negative"),
        ({"border_px": 0}, "train.border_px = 0: must be at least 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)
