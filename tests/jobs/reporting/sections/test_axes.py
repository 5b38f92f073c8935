"""The shares of the axes, by numbers worked out by hand, and the trials as lines across the axes."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reporting.page import render_page
from jobs.reporting.sections.axes import (
    BOTTOM,
    SPREAD,
    TOP,
    _levels,
    _scale,
    cut,
    dice_of,
    draw_parallel,
    eta_squared,
    importances,
    is_scale,
)
from jobs.reporting.statistics.records import Record, read_records
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import Result
from tests.jobs.reporting.short_sweep import AXES, additive, finish, groups_of, plan


def test_shares_of_an_additive_sweep(sweep: Sweep) -> None:
    for trial in sweep.trials:
        finish(trial, additive(trial))
    axes, groups, _ = groups_of(sweep)
    # sums of squares 8 * 0.02^2 and 8 * 0.01^2: four fifths and one fifth
    found = importances(axes, groups)
    assert [one.axis for one in found] == list(AXES)
    assert [one.share for one in found] == pytest.approx([0.8, 0.2, 0.0], abs=1e-9)
    assert {one.by_chance for one in found} == {1 / 7}
    assert importances(axes[:1], groups) == ()


def test_an_axis_with_a_value_for_each_cell_is_left_out(tmp_path: Path) -> None:
    sweep = plan(tmp_path, {"model.arch": ["unet"], "optim.lr": [0.1, 0.2, 0.3, 0.4], "train.seed": [0]})
    for i, trial in enumerate(sweep.trials):
        finish(trial, 0.8 + 0.01 * i)
    _, groups, _ = groups_of(sweep)
    assert importances(["optim.lr", "optim.lr"], groups) == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10_000)), min_size=2, max_size=30))
def test_eta_squared_is_a_share(pairs: list[tuple[int, int]]) -> None:
    levels, dice = zip(*pairs, strict=True)
    values = [one / 10_000 for one in dice]
    assert -1e-9 <= eta_squared(levels, values) <= 1 + 1e-9
    if len(set(values)) > 1:
        assert eta_squared(range(len(values)), values) == pytest.approx(1)
        assert eta_squared([0] * len(values), values) == pytest.approx(0, abs=1e-6)


def test_an_axis_without_effect_has_the_share_by_chance() -> None:
    draw = random.Random(0)
    shares = [eta_squared([i % 4 for i in range(16)], [draw.gauss(0, 1) for _ in range(16)]) for _ in range(2000)]
    assert sum(shares) / len(shares) == pytest.approx(3 / 15, abs=0.01)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_equal_values_share_a_bin(values: list[int]) -> None:
    parts = cut(values)
    assert all(0 <= part < 4 for part in parts)
    assert len(set(zip(values, parts, strict=True))) == len(set(values))
    assert [part for _, part in sorted(zip(values, parts, strict=True))] == sorted(parts)


def test_scales_and_levels() -> None:
    assert is_scale([i / 10 for i in range(9)])
    assert not is_scale(list(range(8)))
    assert not is_scale([True, False] * 9)
    assert not is_scale([str(i) for i in range(20)])


def test_every_trial_is_a_line(sweep: Sweep) -> None:
    for trial in sweep.trials[1:]:
        finish(trial, additive(trial))
    axes, _, records = groups_of(sweep)
    drawing = draw_parallel(axes, records)
    assert drawing
    assert [column.name for column in drawing.columns] == [*AXES, "val Dice"]
    assert len(drawing.paths) == 7  # one has no Dice
    assert [path.dice for path in drawing.paths] == sorted(path.dice for path in drawing.paths)
    assert (drawing.paths[0].depth, drawing.paths[-1].depth) == (0, 100)
    xs = [point.split(",")[0] for point in drawing.paths[0].points.split()]
    assert xs == [str(column.x) for column in drawing.columns]
    # unet is above; in a level's place, lines go from its lower end to its upper one by their Dice
    middle, half = {"resnet34_unet": 228.5, "unet": 85.5}, SPREAD / 4 * (BOTTOM - TOP)
    heights = {round(path.dice, 2): float(path.points.split()[0].split(",")[1]) for path in drawing.paths}
    assert heights == {
        0.80: pytest.approx(middle["resnet34_unet"] + half, abs=0.06),
        0.82: pytest.approx(middle["resnet34_unet"] + half / 3, abs=0.06),
        0.84: pytest.approx(middle["unet"] - half / 3, abs=0.06),
        0.86: pytest.approx(middle["unet"] - half, abs=0.06),
    }
    assert draw_parallel(axes, records[:2]) is None


def test_lines_are_drawn_from_the_first_axis_on(tmp_path: Path) -> None:
    sweep = plan(tmp_path, {"model.arch": ["unet"], "augment.policy": ["none", "elastic"], "train.seed": [0, 1]})
    for trial in sweep.trials:
        finish(trial, 0.8)
    text = render_page(sweep, read_records(sweep))
    assert text.count("<polyline data-dice") == 4
    assert "data-brush>" not in text  # all trials have the same Dice: there is nothing to choose by


def test_no_axis_no_lines(tmp_path: Path) -> None:
    sweep = plan(tmp_path, {"model.arch": ["unet"], "train.seed": [0, 1]})
    for trial in sweep.trials:
        finish(trial, 0.8)
    text = render_page(sweep, read_records(sweep))
    assert "Every trial as a line" not in text
    assert 'id="axes"' not in text
    assert 'href="#axes"' not in text


def test_a_scale_has_ticks_from_end_to_end_by_logarithm_where_it_is_wide() -> None:
    height = BOTTOM - TOP
    ticks, ys = _scale([1.0, 5.0, 9.0])
    assert [text for _, text in ticks] == ["1", "3", "5", "7", "9"]
    assert ys == [y for y, _ in ticks][::2] == [BOTTOM, BOTTOM - height / 2, TOP]
    ticks, ys = _scale([1e-4, 1e-2, 1.0])
    assert [text for _, text in ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert ys == pytest.approx([BOTTOM, BOTTOM - height / 2, TOP])
    assert [text for _, text in _scale([1.0, 30.0])[0]][2] == f"{30**0.5:.3g}"  # wide from here on
    assert [text for _, text in _scale([1.0, 29.0])[0]][2] == "15"
    assert [text for _, text in _scale([0.0, 100.0])[0]][2] == "50"  # 0 has no logarithm


def row(dice: float | None, status: str = "done", best: float | None = None) -> Record:
    result = None
    if dice is not None:
        result = Result("x", {"val/dice": dice}, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)
    trial = TrialStatus(Trial("x", {"lr": 1}, Path("none")), status, dice=best)
    return Record(trial, {"lr": 1}, None, result, [])


def test_a_trial_that_was_stopped_early_has_the_dice_that_it_had() -> None:
    """Nothing is known yet of a trial that still runs."""
    assert [dice_of(row(0.5, best=0.9)), dice_of(row(None, "pruned", 0.4)), dice_of(row(None, "running", 0.3))] == [
        0.5, 0.4, None,
    ]  # fmt: skip
    drawing = draw_parallel(["lr"], [row(0.5), row(None, "pruned", 0.4), row(None, "running", 0.3)])
    assert drawing
    assert [(path.words, path.is_pruned, path.depth) for path in drawing.paths] == [
        ("lr=1: 0.4000 when stopped early", True, 0), ("lr=1: 0.5000", False, 100),
    ]  # fmt: skip
    assert (drawing.low, drawing.high) == (0.4, 0.5)


def test_levels_are_in_order_and_no_more_have_ticks_than_can_be_read() -> None:
    """Numbers from below, words from the top; a value that is not known is one of them."""
    ticks, _ = _levels([8, 2, 4, 2], [0.5] * 4)
    assert [text for _, text in sorted(ticks, reverse=True)] == ["2", "4", "8"]
    ticks, ys = _levels(["unet", None, "fcn"], [0.5] * 3)
    assert [text for _, text in sorted(ticks)] == ["unet", "?", "fcn"]
    assert ys == pytest.approx([y for y, _ in ticks])  # the middle of the Dice is the middle of a level
    assert [text for _, text in _levels(list(range(25)), [0.5] * 25)[0]] == [str(n) for n in range(0, 25, 3)]
    assert len(_levels(list(range(12)), [0.5] * 12)[0]) == 12
