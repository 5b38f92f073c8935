import numpy as np
import pytest
import torch
from torchmetrics.functional.segmentation import dice_score, mean_iou

from petseg.data.inputs import IGNORE_INDEX
from petseg.metrics.pixels import PerImage, Scores, count_pixels, dice_of, iou_of, pet_mask


def logits_of(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([1.0 - mask, mask.float()], dim=1)


def test_counts_by_hand() -> None:
    prediction = torch.tensor([[[1, 1, 0, 0]]])
    target = torch.tensor([[[1, 0, 1, IGNORE_INDEX]]])
    assert count_pixels(logits_of(prediction), target).tolist() == [[1, 1, 1]]
    prediction[0, 0, 3] = 1  # an ignored pixel counts for nothing
    assert count_pixels(logits_of(prediction), target).tolist() == [[1, 1, 1]]


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
    torch.testing.assert_close(dice_of(counts), theirs.flatten().double(), atol=1e-6, rtol=0)
    ious = mean_iou(prediction, target, num_classes=2, include_background=False, input_format="index")
    torch.testing.assert_close(iou_of(counts), ious.flatten().double(), atol=1e-6, rtol=0)


def test_the_summary_averages_pictures_and_the_whole_set() -> None:
    per_image = PerImage(counts=np.array([[10, 0, 0], [10, 10, 20]]), loss=np.array([0.2, 0.4]), pixels=100)
    summary = per_image.summary("val")
    assert summary["val/loss"] == pytest.approx(0.3)
    assert summary["val/dice"] == pytest.approx((1 + 20 / 50) / 2)
    assert summary["val/iou"] == pytest.approx((1 + 10 / 40) / 2)
    assert summary["val/dice_dataset"] == pytest.approx(40 / 70)
    assert summary["val/iou_dataset"] == pytest.approx(20 / 50)
    assert per_image.all_pet_dice() == pytest.approx((20 / 110 + 60 / 130) / 2)


def test_pet_is_the_larger_logit_as_argmax_has_it() -> None:
    logits = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    logits[0, 1, 0] = logits[0, 0, 0]  # undecided pixels are background
    assert torch.equal(pet_mask(logits), logits.argmax(dim=1) == 1)


def test_scores_of_some_pictures_and_empty_truth() -> None:
    """Both empty, prediction alone, truth alone, half of the truth."""
    counts = np.array([[0, 0, 0], [0, 9, 0], [0, 0, 7], [5, 0, 5]])
    scores = Scores(counts, np.array([1.0, 0.0, 0.0, 0.4]), np.array([0.0, 50.0, 50.0, 3.0]))
    assert scores.dice.tolist() == pytest.approx([1.0, 0.0, 0.0, 2 / 3])
    assert scores.iou.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.5])
    assert scores.means() == pytest.approx(
        {"dice": 5 / 12, "iou": 0.375, "dice_dataset": 10 / 31, "iou_dataset": 5 / 26, "boundary_iou": 0.35,
         "hd95_px": 25.75}
    )  # fmt: skip
    assert scores.of(np.array([3, 0])).means()["hd95_px"] == 1.5
