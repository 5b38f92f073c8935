import itertools
import math

import pytest
import segmentation_models_pytorch as smp
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
    distillation,
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


STREET = ClassTerms((1, 2, 3))


def of_one_class(logits: torch.Tensor, target: torch.Tensor, one: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two-class logits and target with the probability and truth of one class among several."""
    probability = logits.softmax(dim=1)[:, one]
    truth = torch.where(target == IGNORE_INDEX, IGNORE_INDEX, (target == one).long())
    return torch.stack([1 - probability, probability], dim=1).log(), truth


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_losses_of_overlap_are_means_over_the_classes_that_count(name: str) -> None:
    """Each class by itself is the loss of two classes, which is tested above. Every class is in each target."""
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
