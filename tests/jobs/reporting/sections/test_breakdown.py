"""The section that breaks the Dice down by parts of the pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.reporting.sections.breakdown import by_group, confusion
from jobs.reporting.sections.breakdown.confusion import Cell, build_confusion
from jobs.reporting.sections.breakdown.rows import Mean, Row, Scale, gather_rows, mean_of, scale_of
from jobs.reporting.statistics.per_image import PerImage
from petseg.config import DataConfig
from petseg.targets.target import packed_target
from tests.jobs.reporting.sections.test_targets import street


def test_parts_of_the_pictures_come_in_alphabetical_order() -> None:
    rows = gather_rows(["b", "a", "b", "c"], np.array([[0.2, 0.5, 0.4, 0.9], [0.0, 0.1, 1.0, 0.3]]))
    assert [(row.name, row.num_pictures) for row in rows] == [("a", 1), ("b", 2), ("c", 1)]
    assert [[mean.value for mean in row.means] for row in rows] == [[0.5, 0.1], pytest.approx([0.3, 0.5]), [0.9, 0.3]]


@pytest.mark.parametrize(
    ("lowest", "low"), [(0.83, 0.8), (0.8, 0.8), (0.99, 0.95), (1.0, 0.95), (0.04, 0.0), (0.0, 0.0), (None, 0.0)]
)
def test_a_scale_begins_at_a_multiple_of_a_twentieth(lowest: float | None, low: float) -> None:
    best = Row("b", 1, (Mean(1.0, None),))
    rows = [] if lowest is None else [Row("a", 1, (Mean(1.0, None), Mean(lowest, 0.5))), best]
    assert scale_of(rows).low == pytest.approx(low)


def test_values_off_the_scale_stand_at_its_ends() -> None:
    assert [Scale(0.5).x(value) for value in (0.2, 0.5, 0.75, 1.0, 1.5)] == [4, 4, 104, 204, 204]


def test_the_interval_of_a_mean_has_ends_within_dice_or_none() -> None:
    assert [(one.low, one.high) for one in (Mean(0.5, 0.2), Mean(0.1, 0.2), Mean(0.9, 0.2), Mean(0.5, None))] == [
        (0.3, 0.7), (0.0, pytest.approx(0.3)), (0.7, 1.0), (0.5, 0.5),
    ]  # fmt: skip
    assert mean_of(np.array([0.5])) == Mean(0.5, None)


def test_the_hardest_parts_of_the_best_cell_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name where they are as hard; what is left out still decides the scale."""
    monkeypatch.setattr(by_group, "MAX_ROWS", 2)
    dice = [("c", 0.5, 0.9), ("b", 0.7, 0.1), ("a", 0.5, 0.8)]
    rows = [Row(name, 2, (Mean(first, None), Mean(second, None))) for name, first, second in dice]
    section = by_group._section("group", (), rows[:1], rows)
    assert ([row.name for row in section.rows], section.left_out) == (["a", "c"], 1)
    assert ([row.name for row in section.wider], section.scale.low, section.trouble) == (["c"], pytest.approx(0.1), "")


@pytest.mark.parametrize(
    ("own", "facts", "groups"),
    [
        ("aab", None, "aab"),
        ("aaa", None, ""),  # of a single group there is nothing to compare
        ("abc", None, ""),
        ("", "xxy", "xxy"),
        ("", "x?y", ""),
        ("", "", ""),
    ],
)
def test_groups_of_pictures_are_told_by_the_run_and_else_by_the_set(
    monkeypatch: pytest.MonkeyPatch, own: str, facts: str | None, groups: str
) -> None:
    def load(where: object, keys: tuple[str, ...]) -> tuple[list[dict[str, Any]], str]:
        assert facts is not None
        assert (where, keys) == ("where", ("k0", "k1", "k2"))
        return [{} if one == "?" else {"group": one} for one in facts], ""

    monkeypatch.setattr(by_group, "load_facts", load)
    pictures = PerImage(("k0", "k1", "k2"), np.ones((3, 1, 3)), tuple(own))
    assert by_group.groups_of(pictures, "where") == list(groups)  # type: ignore[arg-type]
    monkeypatch.setattr(by_group, "MAX_FACTS", 2)
    if not own:
        assert by_group.groups_of(pictures, "where") == []  # type: ignore[arg-type]


def test_what_is_confused_with_what() -> None:
    """The third class is called and never there; nobody calls the fourth, which is not there either."""
    target = packed_target(DataConfig(), street("road", "car", "sky", "sea"))
    pixels = np.array([[6, 1, 1, 0], [4, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = build_confusion(target, pixels)
    assert found
    assert [one.name for one in found.classes] == ["road", "car", "sky"]
    assert [(one.name, [(cell.share, cell.is_right) for cell in cells]) for one, cells in found.rows] == [
        ("road", [(0.75, True), (0.125, False), (0.125, False)]), ("car", [(0.5, False), (0.5, True), (0.0, False)]),
    ]  # fmt: skip
    assert [(one.truth.name, one.called.name, one.share, one.of_all) for one in found.pairs] == [
        ("car", "road", 0.5, 0.25), ("road", "car", 0.125, 0.0625), ("road", "sky", 0.125, 0.0625),
    ]  # fmt: skip
    assert found.left_out == 0
    assert build_confusion(target, 0 * pixels) is None


def test_the_classes_with_the_most_pixels_and_the_worst_pairs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MAX_CLASSES", 2)
    monkeypatch.setattr(confusion, "MAX_PAIRS", 1)
    target = packed_target(DataConfig(), street("a", "b", "c"))
    found = build_confusion(target, np.array([[5, 0, 1], [0, 1, 0], [2, 0, 7]]))
    assert found
    assert ([one.name for one in found.classes], found.left_out) == (["a", "c"], 1)
    assert [(one.truth.name, one.called.name) for one in found.pairs] == [("c", "a")]


@pytest.mark.parametrize(
    ("share", "is_right", "depth", "text"),
    [(1.0, True, 60, "100"), (0.25, True, 15, "25"), (0.25, False, 30, "25"), (0.005, False, 4, "0"),
     (0.0049, False, 4, ""), (0.0, False, 0, "")],
)  # fmt: skip
def test_small_errors_show_by_their_colour(share: float, is_right: bool, depth: int, text: str) -> None:
    cell = Cell(share, is_right)
    assert (cell.depth, cell.text) == (depth, text)


def test_an_interval_by_hand() -> None:
    mean = mean_of(np.array([0.8, 0.9, 1.0]))
    assert mean.value == pytest.approx(0.9)
    assert mean.reach == pytest.approx(4.302653 * 0.1 / 3**0.5)  # t of two degrees of freedom
    assert mean_of(np.array([0.8])).reach is None


def test_an_interval_of_dice_stays_within_its_bounds() -> None:
    mean = mean_of(np.array([0.1, 0.9]))
    assert mean.reach > 1
    assert (mean.low, mean.high) == (0.0, 1.0)
