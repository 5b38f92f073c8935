"""What evaluate-SPLIT.json and the tables say of scores: who is worst, and what groups and classes come to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from petseg.evaluation.report import (
    NUM_LOWEST,
    NUM_WORST,
    calibration_line,
    classes_of,
    classes_table,
    groups,
    groups_table,
    worst,
    worst_table,
)
from petseg.metrics.pixels import Scores
from tests.targets import pets_target

HALF, GOOD, BAD = [1, 1, 1], [9, 1, 1], [1, 9, 9]  # Dice 0.5, 0.9, 0.1


def scores_of(*counts: list[int]) -> Scores:
    """The boundary IoU of picture i is i / 10, and its HD95 i px."""
    numbers = np.arange(len(counts), dtype=float)[:, None]
    return Scores(np.array(counts, np.int64)[:, None], numbers / 10, numbers)


def cells(table: Any) -> list[tuple[str, ...]]:
    return list(zip(*(list(column.cells) for column in table.columns), strict=True))


def test_groups_are_the_means_of_their_pictures_in_alphabetical_order() -> None:
    found = groups(["b", "a", "b"], scores_of(HALF, GOOD, BAD))
    assert list(found) == ["a", "b"]
    assert found["a"]["pictures"] == 1
    assert found["a"]["dice"] == pytest.approx(0.9)
    assert found["b"]["pictures"] == 2
    assert found["b"]["dice"] == pytest.approx(0.3)
    assert found["b"]["dice_dataset"] == pytest.approx(2 * 2 / (2 * 2 + 10 + 10))
    assert found["b"]["boundary_iou"] == pytest.approx(0.1)
    assert found["b"]["hd95_px"] == pytest.approx(1.0)


def test_the_worst_pictures_come_first_each_with_its_own_numbers() -> None:
    found = worst(["half", "good", "bad"], scores_of(HALF, GOOD, BAD))
    assert [row["key"] for row in found] == ["bad", "half", "good"]
    assert [row["dice"] for row in found] == pytest.approx([0.1, 0.5, 0.9])
    assert [row["boundary_iou"] for row in found] == pytest.approx([0.2, 0.0, 0.1])
    assert [row["hd95_px"] for row in found] == [2, 0, 1]
    many = worst([str(i) for i in range(50)], scores_of(*[HALF] * 50))
    assert [row["key"] for row in many] == [str(i) for i in range(NUM_WORST)]
    assert [row[0] for row in cells(worst_table({"worst": found}))] == ["bad", "half", "good"]


def test_classes_have_their_own_pictures_shares_and_means() -> None:
    """Two pictures of three classes: the second picture has no border in its truth, and none was predicted."""
    target = pets_target("trimap")
    counts = np.array([[[8, 2, 2], [1, 1, 3]], [[4, 4, 0], [0, 0, 0]]], np.int64)
    outlines = np.array([[0.5, 0.25], [1.0, 1.0]])
    confusion = np.array([[70, 4, 0], [2, 12, 0], [1, 2, 9]])
    own = Scores(counts, outlines, 4 * outlines)
    found: Any = classes_of(SimpleNamespace(target=target, own=own, confusion=confusion))  # type: ignore[arg-type]
    assert found["confusion"] == {"classes": ["background", "pet", "border"], "pixels": confusion.tolist()}
    background, pet, border = (found["classes"][name] for name in target.names)
    assert background == {"share_of_pixels": 0.74}
    assert (pet["share_of_pixels"], pet["pictures"]) == (0.14, 2)
    assert pet["dice"] == pytest.approx((0.8 + 8 / 12) / 2)
    assert (border["share_of_pixels"], border["pictures"]) == (0.12, 1)
    assert border["dice"] == pytest.approx(2 / 6)
    assert border["hd95_px"] == 1.0
    table = classes_table(found)
    assert table is not None
    assert cells(table) == [
        ("background", "", "74.00%", "in no mean", "", "", ""),
        ("pet", "2", "14.00%", "0.7333", "0.7500", "0.6000", "3.00"),
        ("border", "1", "12.00%", "0.3333", "0.3333", "0.2000", "1.00"),
    ]
    nowhere = Scores(np.zeros_like(counts), outlines, outlines)
    found = classes_of(SimpleNamespace(target=target, own=nowhere, confusion=confusion))  # type: ignore[arg-type]
    assert found["classes"]["pet"]["pictures"] == 0
    assert found["classes"]["pet"]["dice"] is None
    table = classes_table(found)
    assert table is not None
    assert cells(table)[1] == ("pet", "0", "14.00%", "", "", "", "")


def test_a_class_counts_the_pictures_that_its_means_are_taken_over() -> None:
    """One picture has the class in its truth, one in its prediction alone, one in neither."""
    counts = np.array([[[2, 3, 3]], [[0, 4, 0]], [[0, 0, 0]]], np.int64)
    outlines = np.zeros((3, 1))
    target = SimpleNamespace(names=("background", "car"), counted=(1,))
    own, confusion = Scores(counts, outlines, outlines), np.array([[9, 5], [1, 2]])
    found: Any = classes_of(SimpleNamespace(target=target, own=own, confusion=confusion))  # type: ignore[arg-type]
    assert found["classes"]["car"]["pictures"] == 2
    assert found["classes"]["car"]["dice"] == pytest.approx((4 / 10 + 0) / 2)


def test_two_classes_have_no_table_of_classes() -> None:
    assert classes_of(SimpleNamespace(confusion=None)) == {}  # type: ignore[arg-type]
    assert classes_table({}) is None


def group(dice: float) -> dict[str, float]:
    return {"pictures": 3, "dice": dice, "iou": dice / 2, "boundary_iou": dice / 4, "hd95_px": 10 * dice}


def test_the_lowest_groups_stand_behind_all_of_a_coarser_grouping() -> None:
    fine = {str(i): group(i / 100) for i in reversed(range(NUM_LOWEST + 3))}
    lowest = [str(i) for i in range(NUM_LOWEST)]
    table = groups_table({"species": {"cat": group(0.9), "dog": group(0.8)}, "breeds": fine})
    assert table is not None
    assert table.title == "species, and breeds of lowest Dice"
    assert [row[0] for row in cells(table)] == ["cat", "dog", *lowest]
    assert cells(table)[0] == ("cat", "3", "0.9000", "0.4500", "0.2250", "9.00")
    table = groups_table({"groups": fine})
    assert table is not None
    assert [row[0] for row in cells(table)] == lowest
    assert groups_table({"groups": {}}) is None


def test_the_calibration_says_on_what_its_temperature_was_fitted() -> None:
    metrics = {
        f"{split}/{name}": value for split in ("val", "test") for name, value in (("ece", 0.1), ("ece_scaled", 0.05))
    }

    def line(split: str, temperature: float | None) -> str:
        return calibration_line(SimpleNamespace(split=split, temperature=temperature), metrics)  # type: ignore[arg-type]

    assert line("test", None) == "expected calibration error 0.1000; no val split to fit a temperature on"
    scaled = "expected calibration error 0.1000; 0.0500 with logits divided by 1.500, fitted"
    assert line("test", 1.5) == f"{scaled} on val"
    assert line("val", 1.5) == f"{scaled} and measured on the same pictures"
