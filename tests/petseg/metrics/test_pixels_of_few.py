"""Counts at their limits: single pixels, classes that are nowhere, and logits that are brought to a picture's size."""

import numpy as np
import pytest
import torch

from petseg.data.inputs import IGNORE_INDEX
from petseg.metrics.pixels import (
    PerImage,
    Scores,
    confusion_of,
    count_classes,
    dice_of,
    iou_of,
    picture_dice,
    picture_iou,
    predicted_classes,
    to_native,
)


def test_single_pixels_count() -> None:
    counts = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    assert dice_of(counts).tolist() == pytest.approx([1.0, 0.0, 0.0, 2 / 3])
    assert iou_of(counts).tolist() == pytest.approx([1.0, 0.0, 0.0, 1 / 2])


def test_a_class_of_one_pixel_is_in_its_picture_and_one_of_none_is_not() -> None:
    counts = np.array([[[0, 1, 0], [4, 0, 2], [0, 0, 0]], [[0, 0, 0], [4, 0, 2], [0, 0, 0]]])
    assert picture_dice(torch.from_numpy(counts)).tolist() == pytest.approx([0.4, 0.8])
    assert picture_iou(torch.from_numpy(counts)).tolist() == pytest.approx([1 / 3, 2 / 3])
    scores = Scores(counts, np.full((2, 3), 0.5), np.full((2, 3), 2.0))
    assert scores.present.tolist() == [[True, True, False], [False, True, False]]
    np.testing.assert_allclose(scores.class_dice, [[0.0, 0.8, np.nan], [np.nan, 0.8, np.nan]])
    assert scores.of_class(0)["dice"] == 0.0
    assert all(np.isnan(value) for value in scores.of_class(2).values())


def test_a_picture_without_any_class_has_the_best_outline() -> None:
    scores = Scores(np.zeros((1, 2, 3), np.int64), np.full((1, 2), 0.5), np.full((1, 2), 2.0))
    assert scores.picture_boundary_iou.tolist() == [1.0]
    assert scores.picture_hd95_px.tolist() == [0.0]


@pytest.mark.parametrize("counted", [(1,), (1, 2, 3)], ids=str)
def test_the_best_single_class_is_that_of_predictions_of_one_class(counted: tuple[int, ...]) -> None:
    sizes = [(1, 2), (3, 4), (2, 2)]
    draw = torch.Generator().manual_seed(5)
    targets = [torch.randint(0, 4, (1, *size), generator=draw) for size in sizes]
    targets[0][:] = torch.tensor([1, 2])  # classes of one pixel
    targets[2][:] = 0  # nothing that counts
    truth = torch.cat([count_classes(torch.zeros_like(target), target, counted) for target in targets])
    pixels = np.array([float(target.numel()) for target in targets])
    found = PerImage(counts=truth.numpy(), loss=np.zeros(3), pixels=pixels).one_class_dice()
    each = [
        np.mean([float(picture_dice(count_classes(torch.full_like(t, one), t, counted))) for t in targets])
        for one in counted
    ]
    assert found == pytest.approx(max(each))


def test_confusion_is_by_truth_and_then_prediction_even_of_classes_that_are_nowhere() -> None:
    target = torch.tensor([[[0, 1, 1, IGNORE_INDEX]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 2, 1, 3]]], dtype=torch.uint8)
    expected = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion_of(prediction, target, 4).tolist() == expected


def test_the_third_class_is_predicted_at_any_height() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2] = 1.0
    assert predicted_classes(logits).tolist() == [[[2, 2], [2, 2]]]


def test_native_logits_are_bilinear_between_the_centres_of_pixels() -> None:
    logits = torch.tensor([[[0.0, 4.0]], [[8.0, 0.0]]]).half()  # (2, 1, 2)
    native = to_native(logits, (2, 4))
    assert native.dtype == torch.float32
    row, other = [0.0, 1.0, 3.0, 4.0], [8.0, 6.0, 2.0, 0.0]
    assert native.tolist() == [[[row, row], [other, other]]]


def test_native_logits_of_a_letterbox_are_those_within_its_margins() -> None:
    logits = torch.full((2, 8, 8), 9.0)
    logits[:, 2:6] = torch.arange(8.0)  # a picture of 4 x 8, with margins above and below
    native = to_native(logits, (4, 8), "letterbox")
    assert torch.equal(native, torch.arange(8.0).expand(1, 2, 4, 8))
    assert not torch.equal(to_native(logits, (4, 8)), native)
