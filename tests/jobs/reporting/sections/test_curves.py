"""Curves over the epochs, the gaps between them, and how they are marked, from rows that are written down here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.reporting.sections import charts, curves, gap
from jobs.reporting.sections.charts import Frame, Outside, Shape, lines_outside, value_limits
from jobs.reporting.sections.curves import Curve, Line, Panel, collect, curve_of, line_of
from jobs.reporting.sections.gap import At, gap_of, measure_gaps
from jobs.reporting.statistics.records import Group, Record
from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import Result

RESULT = Result("x", {"val/dice": 0.5}, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)
NAN = float("nan")


def record(*dice: float, done: bool = True, first: int = 1, **more: Any) -> Record:
    """A row per val Dice; more: further columns by their names, __ for the slash."""
    rows = [
        {"epoch": first + i, "val/dice": one} | {name.replace("__", "/"): own[i] for name, own in more.items()}
        for i, one in enumerate(dice)
    ]
    status = TrialStatus(Trial("x", {}, Path("none")), "done" if done else "running")
    return Record(status, {}, None, RESULT if done else None, rows)


def test_a_line_has_the_seeds_that_reached_an_epoch() -> None:
    """One stopped after two epochs, and one has a number that is none."""
    found = line_of([record(0.25, 0.5, 0.75), record(0.75, 0.5), record(NAN, 0.125, 1.0)], "val/dice")
    assert found == Line((1, 2, 3), (0.5, 0.375, 0.875), (0.25, 0.125, 0.75), (0.75, 0.5, 1.0))
    assert line_of([record(NAN)], "val/dice") is line_of([record(0.5)], "val/loss") is None


def test_trials_that_still_run_are_drawn_until_one_is_finished() -> None:
    running, done = record(0.9, 0.8, done=False), record(0.5, 0.7)
    waiting = record(done=False)
    one = curve_of(Group({}, (running, waiting)), "a", 3)
    assert one
    assert (one.label, one.colour, one.n, one.best_dice_epoch, one.lowest_loss_epoch) == ("a", 3, 1, 1, None)
    both = curve_of(Group({}, (running, done)), "a", 3)
    assert both
    assert (both.n, both.best_dice_epoch, both.lines["val/dice"].mean) == (1, 2, (0.5, 0.7))
    assert curve_of(Group({}, (waiting,)), "a", 3) is None


def test_the_best_epoch_is_that_of_the_mean_and_the_first_of_equal_ones() -> None:
    losses = {"val__loss": [0.5, 0.25, 0.25]}
    one = curve_of(Group({}, (record(0.1, 0.9, 0.9, **losses), record(0.5, 0.1, 0.1, **losses))), "a", 0)
    assert one
    assert (one.best_dice_epoch, one.lowest_loss_epoch) == (2, 2)


def test_the_second_axis_is_the_colour_and_the_others_are_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = ["arch", "policy", "lr"]
    places = [("u", "none", 1), ("u", "flip", 1), ("u", "none", 2), ("f", "flip", 1)]
    groups = [Group(dict(zip(axes, place, strict=True)), (record(0.5),)) for place in places]
    groups.append(Group(dict(zip(axes, ("f", "crop", 3), strict=True)), (record(done=False),)))

    def drawn(axes: list[str], groups: list[Group]) -> list[tuple[str, list[tuple[str, int]]]]:
        return [(one.title, [(c.label, c.colour) for c in one.curves]) for one in collect(axes, groups)]

    assert drawn(axes, groups) == [
        ("u · lr=1", [("none", 0), ("flip", 1)]), ("u · lr=2", [("none", 0)]), ("f · lr=1", [("flip", 1)]),
    ]  # fmt: skip
    alone = [Group({"lr": value}, (record(0.5),)) for value in (3, 7)]
    assert drawn(["lr"], alone) == [("", [("lr=3", 0), ("lr=7", 1)])]
    assert drawn([], [Group({}, (record(0.5),))]) == [("", [("all trials", 0)])]
    monkeypatch.setattr(curves, "MAX_PANELS", 2)
    assert [title for title, _ in drawn(axes, groups)] == ["u · lr=1", "u · lr=2"]


def test_a_gap_is_that_of_the_best_and_of_the_last_epoch() -> None:
    losses = {"val__loss": [0.5, 0.25, 0.375], "train__loss": [1.0, 0.5, 0.125]}
    group = Group({"a": 1}, (record(0.5, 0.75, 0.625, train__dice=[0.5, 0.8, 0.9], **losses),))
    found = gap_of(group)
    assert found
    assert (found.label, found.opens, found.rise) == ("a=1", 2, 0.125)
    assert found.best == At(2, 0.8, 0.75, 0.5, 0.25)
    assert found.last == At(3, 0.9, 0.625, 0.125, 0.375)
    assert found.best.dice_gap == pytest.approx(0.05)
    assert (found.last.loss_gap, found.best.loss_gap) == (0.25, -0.25)


def test_a_gap_of_what_was_not_measured_is_not_known() -> None:
    """Val loss ended an epoch before val Dice."""
    found = gap_of(Group({}, (record(0.5, 0.75, val__loss=[0.5, NAN]),)))
    assert found
    assert (found.opens, found.rise, found.last.dice_gap, found.last.loss_gap) == (1, None, None, None)
    assert At(1, 0.5, None, None, 0.5).dice_gap is At(1, None, 0.5, 0.5, None).loss_gap is None
    assert gap_of(Group({}, (record(NAN, val__loss=[0.5]),))) is None


def test_gaps_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap, "MAX_ROWS", 2)
    groups = [Group({"a": number}, (record(0.5),)) for number in range(4)]
    table = measure_gaps([Group({}, (record(done=False),)), *groups])
    assert ([row.label for row in table.rows], table.left_out) == (["a=0"], 3)


def flat(mean: float, high: float, epochs: tuple[int, ...] = (1, 2)) -> Line:
    count = len(epochs)
    return Line(epochs, (mean,) * count, (mean,) * count, (high,) * count)


def curve(n: int = 2, best: int | None = 2, lowest: int | None = 1, **lines: Line) -> Curve:
    return Curve("a", 4, n, {name.replace("__", "/"): line for name, line in lines.items()}, best, lowest)


def test_the_frame_has_room_for_all_lines_but_for_a_first_leap() -> None:
    low, high = value_limits([curve(val__loss=flat(1.0, 2.0)), curve(train__loss=flat(0.5, 1.0))], "loss")
    assert (low, high) == (pytest.approx(0.5 - 0.09), pytest.approx(2.0 + 0.09))
    leap = Line(tuple(range(100)), (1.0,) * 100, (1.0,) * 100, (50.0, *(1.0,) * 99))
    assert value_limits([curve(val__loss=leap)], "loss") == (pytest.approx(0.97), pytest.approx(1.53))
    assert value_limits([curve(val__dice=flat(0.5, 0.5))], "dice") == (pytest.approx(0.45), pytest.approx(0.55))
    assert value_limits([curve(val__dice=flat(0.5, 0.5))], "loss") == (0.0, 1.0)


FRAME = Frame(66.0, (0.0, 10.0), (0.0, 10.0))  # 30 px per epoch, 17 per unit


def test_a_band_is_drawn_between_several_seeds() -> None:
    lines = {"train__loss": Line((1, 2), (2.0, 4.0), (1.0, 3.0), (3.0, 5.0)), "val__loss": flat(5.0, 5.0)}
    shapes = list(charts._lines(FRAME, curve(**lines), "loss"))
    assert [(shape.kind, shape.colour) for shape in shapes] == [("band", 4), ("train", 4), ("band", 4), ("val", 4)]
    assert [shape.path for shape in shapes[:2]] == [
        "M96.0,160.0L126.0,126.0L126.0,92.0L96.0,126.0Z", "M96.0,143.0L126.0,109.0",
    ]  # fmt: skip
    assert [one.kind for one in charts._lines(FRAME, curve(1, **lines), "loss")] == ["train", "val"]
    assert list(charts._lines(FRAME, curve(**lines), "dice")) == []


def test_marks_stand_at_their_epochs_and_arrows_where_a_line_leaves() -> None:
    lines = {"train__loss": Line((1, 2), (2.0, 4.0), (1.0, 3.0), (11.0, 10.0)), "val__loss": flat(5.0, 5.0)}
    assert list(charts._marks(FRAME, curve(**lines), "loss")) == [
        Shape("above", 4, "M92.0,11.0h8L96.0,3.0Z"),
        Shape("best", 4, "M122.5,92.0a3.5,3.5 0 1,0 7.0,0a3.5,3.5 0 1,0 -7.0,0Z"),
        Shape("lowest", 4, "M90.5,86.5h11L96.0,97.5Z"),
    ]
    assert [one.kind for one in charts._marks(FRAME, curve(best=None, lowest=7, **lines), "loss")] == ["above"]


def test_a_single_epoch_is_a_dash_for_train_and_a_square_for_val() -> None:
    lines = {"train__dice": flat(5.0, 5.0, (1,)), "val__dice": flat(5.0, 5.0, (1,))}
    assert list(charts._marks(FRAME, curve(best=None, lowest=None, **lines), "dice")) == [
        Shape("alone train", 4, "M92.5,92.0h7"), Shape("alone val", 4, "M92.5,88.5h7v7h-7Z"),
    ]  # fmt: skip


def test_lines_that_leave_the_frame_are_named_with_their_highest_point() -> None:
    high = Line((1, 2, 3), (1.0,) * 3, (1.0,) * 3, (12.0, 15.0, 9.0))
    one = curve(train__loss=high, val__loss=flat(1.0, 10.0))
    panel = Panel("", (one, replace(one, label="b", lines={"val/loss": high})))
    assert lines_outside(panel, "loss", 10.0) == (Outside("a train", 15.0, 2), Outside("b val", 15.0, 2))
