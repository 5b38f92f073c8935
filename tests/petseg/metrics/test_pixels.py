from dataclasses import replace

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index
from torchmetrics.functional.segmentation import dice_score, mean_iou

from petseg.data.inputs import IGNORE_INDEX
from petseg.metrics.pixels import (
    PerImage,
    Scores,
    confusion_of,
    count_classes,
    count_pixels,
    dice_of,
    iou_of,
    picture_dice,
    picture_iou,
    predicted_classes,
)


def logits_of(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([1.0 - mask, mask.float()], dim=1)


def test_counts_by_hand() -> None:
    prediction = torch.tensor([[[1, 1, 0, 0]]])
    target = torch.tensor([[[1, 0, 1, IGNORE_INDEX]]])
    assert count_pixels(logits_of(prediction), target).tolist() == [[[1, 1, 1]]]
    prediction[0, 0, 3] = 1  # an ignored pixel counts for nothing
    assert count_pixels(logits_of(prediction), target).tolist() == [[[1, 1, 1]]]


def test_dice_and_iou_by_hand_and_of_nothing() -> None:
    counts = torch.tensor([[3, 1, 2], [0, 0, 0], [0, 5, 0]])
    assert dice_of(counts).tolist() == pytest.approx([6 / 9, 1.0, 0.0])
    assert iou_of(counts).tolist() == pytest.approx([3 / 6, 1.0, 0.0])


def test_they_agree_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = (torch.rand(6, 32, 32, generator=generator) > 0.6).long()
    target = (torch.rand(6, 32, 32, generator=generator) > 0.5).long()
    counts = count_pixels(logits_of(prediction), target)
    theirs = dice_score(prediction, target, num_classes=2, include_background=False, input_format="index")
    torch.testing.assert_close(picture_dice(counts), theirs.flatten().double(), atol=1e-6, rtol=0)
    ious = mean_iou(prediction, target, num_classes=2, include_background=False, input_format="index")
    torch.testing.assert_close(picture_iou(counts), ious.flatten().double(), atol=1e-6, rtol=0)


def test_the_summary_averages_pictures_and_the_whole_set() -> None:
    per_image = PerImage(counts=np.array([[[10, 0, 0]], [[10, 10, 20]]]), loss=np.array([0.2, 0.4]), pixels=100)
    summary = per_image.summary("val")
    assert summary["val/loss"] == pytest.approx(0.3)
    assert summary["val/dice"] == pytest.approx((1 + 20 / 50) / 2)
    assert summary["val/iou"] == pytest.approx((1 + 10 / 40) / 2)
    assert summary["val/dice_dataset"] == pytest.approx(40 / 70)
    assert summary["val/iou_dataset"] == pytest.approx(20 / 50)
    assert per_image.one_class_dice() == pytest.approx((20 / 110 + 60 / 130) / 2)
    per_image = replace(per_image, pixels=np.array([10.0, 50.0]))  # pictures of their own sizes
    assert per_image.one_class_dice() == pytest.approx((20 / 20 + 60 / 80) / 2)


def test_pet_is_the_larger_logit_as_argmax_has_it() -> None:
    logits = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    logits[0, 1, 0] = logits[0, 0, 0]  # undecided pixels are background
    assert torch.equal(predicted_classes(logits), logits.argmax(dim=1).to(torch.uint8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_classes", [3, 12])
def test_undecided_pixels_get_the_first_of_the_largest_classes(num_classes: int, layout: torch.memory_format) -> None:
    drawn = torch.randint(0, 3, (2, num_classes, 33, 47), generator=torch.Generator().manual_seed(1))
    logits = drawn.float().to(memory_format=layout)  # most pixels have several largest ones
    first = np.argmax(logits.numpy(), axis=1)  # numpy promises the first
    assert np.array_equal(predicted_classes(logits).numpy(), first)
    assert (np.sum(logits.numpy() == logits.amax(dim=1, keepdim=True).numpy(), axis=1) > 1).mean() > 0.3


def test_scores_of_some_pictures_and_empty_truth() -> None:
    """Both empty, prediction alone, truth alone, half of the truth."""
    counts = np.array([[0, 0, 0], [0, 9, 0], [0, 0, 7], [5, 0, 5]])[:, None]
    scores = Scores(counts, np.array([[1.0], [0.0], [0.0], [0.4]]), np.array([[0.0], [50.0], [50.0], [3.0]]))
    assert scores.dice.tolist() == pytest.approx([1.0, 0.0, 0.0, 2 / 3])
    assert scores.iou.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.5])
    assert scores.means() == pytest.approx(
        {"dice": 5 / 12, "iou": 0.375, "dice_dataset": 10 / 31, "iou_dataset": 5 / 26, "boundary_iou": 0.35,
         "hd95_px": 25.75}
    )  # fmt: skip
    assert scores.of(np.array([3, 0])).means()["hd95_px"] == 1.5


@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_counts_are_those_of_segmentation_models_pytorch_with_ignored_pixels(num_classes: int) -> None:
    draw = torch.Generator().manual_seed(num_classes)
    prediction = torch.randint(0, num_classes, (5, 24, 32), generator=draw)
    target = torch.randint(0, num_classes, (5, 24, 32), generator=draw)
    target[torch.rand(target.shape, generator=draw) < 0.2] = IGNORE_INDEX
    target[0][target[0] == 1] = 0  # a class that a picture lacks
    counts = count_classes(prediction.to(torch.uint8), target, range(num_classes))
    tp, fp, fn, _ = smp.metrics.get_stats(
        prediction, target, mode="multiclass", num_classes=num_classes, ignore_index=IGNORE_INDEX
    )
    assert torch.equal(counts, torch.stack([tp, fp, fn], dim=-1))
    logits = torch.nn.functional.one_hot(prediction, num_classes).permute(0, 3, 1, 2).float()
    assert torch.equal(count_pixels(logits, target, range(num_classes)), counts)
    confusion = confusion_of(prediction.to(torch.uint8), target, num_classes)
    assert torch.equal(confusion.diagonal(), counts[..., 0].sum(dim=0))
    assert torch.equal(confusion.sum(dim=1), (counts[..., 0] + counts[..., 2]).sum(dim=0))
    assert torch.equal(confusion.sum(dim=0), (counts[..., 0] + counts[..., 1]).sum(dim=0))


def test_dice_and_iou_of_classes_are_those_of_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    prediction, target = (torch.randint(0, 4, (6, 32, 32), generator=draw) for _ in range(2))
    counts = count_classes(prediction.to(torch.uint8), target, range(1, 4))
    dice = dice_score(
        prediction, target, num_classes=4, include_background=False, input_format="index", average="macro"
    )
    torch.testing.assert_close(picture_dice(counts), dice.double(), atol=1e-6, rtol=0)
    iou = mean_iou(prediction, target, num_classes=4, include_background=False, input_format="index")
    torch.testing.assert_close(picture_iou(counts), iou.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_ignored_pixels_count_as_little_as_in_torchmetrics(num_classes: int) -> None:
    draw = torch.Generator().manual_seed(num_classes)
    prediction, target = (torch.randint(0, num_classes, (4, 24, 32), generator=draw) for _ in range(2))
    target[torch.rand(target.shape, generator=draw) < 0.3] = IGNORE_INDEX
    counts = count_classes(prediction.to(torch.uint8), target, range(num_classes))
    kept = {"num_classes": num_classes, "ignore_index": IGNORE_INDEX, "average": "none"}
    dice = multiclass_f1_score(prediction, target, **kept)
    torch.testing.assert_close(dice_of(counts.sum(dim=0)), dice.double(), atol=1e-6, rtol=0)
    iou = multiclass_jaccard_index(prediction, target, **kept)
    torch.testing.assert_close(iou_of(counts.sum(dim=0)), iou.double(), atol=1e-6, rtol=0)
    for picture in range(len(target)):  # every class is in each of them, so the mean is one over all classes
        mean = multiclass_f1_score(prediction[picture], target[picture], **kept).double().mean()
        torch.testing.assert_close(picture_dice(counts)[picture], mean, atol=1e-6, rtol=0)


def test_a_picture_is_the_mean_of_the_classes_that_are_in_it() -> None:
    """Road right, car half missed, no sky at all; a picture without any class; one of a class that is only called."""
    counts = np.array([[[8, 0, 0], [1, 0, 1], [0, 0, 0]], [[0, 0, 0]] * 3, [[0, 0, 0], [0, 4, 0], [0, 0, 0]]])
    scores = Scores(counts, np.ones((3, 3)), np.full((3, 3), 2.0))
    assert scores.dice.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1.0, 0.0])
    assert scores.iou.tolist() == pytest.approx([(1 + 1 / 2) / 2, 1.0, 0.0])
    assert scores.picture_hd95_px.tolist() == [2.0, 0.0, 2.0]
    assert scores.means()["dice_dataset"] == pytest.approx((1 + 2 / 7) / 2)
    assert np.isnan(scores.class_dice[:, 2]).all()
    car = scores.of_class(1)
    assert (car["dice"], car["dice_dataset"], car["hd95_px"]) == pytest.approx(((2 / 3 + 0) / 2, 2 / 7, 2.0))


def test_the_best_single_class_is_the_floor() -> None:
    """100 pixels each: all road, and half road, half car. Calling road everywhere: 1 and (2/3 + 0) / 2."""
    counts = np.array([[[0, 0, 100], [0, 0, 0]], [[0, 0, 50], [0, 0, 50]]])
    per_image = PerImage(counts=counts, loss=np.zeros(2), pixels=100)
    assert per_image.one_class_dice() == pytest.approx((1 + (100 / 150) / 2) / 2)
