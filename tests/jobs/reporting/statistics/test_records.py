"""Records, groups and their ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.reporting.statistics.records import Record, Spread, gather, read_records, spread_of, tabulate, varied
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import TrialStatus
from tests.jobs.reporting.written_sweep import DICE, LAB, Lab, finish, ranking_of


def test_spread_is_mean_and_sample_sd() -> None:
    spread = spread_of([0.899, 0.900, 0.904])
    assert spread is not None
    assert spread.mean == pytest.approx(0.901)
    assert spread.sd == pytest.approx(((0.002**2 + 0.001**2 + 0.003**2) / 2) ** 0.5)
    assert (spread.low, spread.high, spread.n) == (0.899, 0.904, 3)
    assert spread_of([0.9]) == Spread(0.9, None, 0.9, 0.9, 1)
    assert spread_of([]) is None


def test_ranking_of_the_lab(finished: Sweep) -> None:
    ranking = ranking_of(finished)
    assert [tuple(p.group.axes.values()) for p in ranking] == list(DICE)
    assert [p.val_dice.mean for p in ranking] == pytest.approx([0.901, 0.900, 0.880, 0.860])
    assert [p.val_dice.n for p in ranking] == [3, 3, 3, 3]
    assert ranking[0].group.best().result.metrics["val/dice"] == 0.904
    assert ranking[0].group.spread("test/dice").mean == pytest.approx(0.891)


def test_grid_is_first_axis_by_second(finished: Sweep) -> None:
    records = read_records(finished)
    axes = varied(finished, records)
    (grid,) = tabulate(axes, gather(axes, records))
    assert (grid.row_axis, grid.column_axis) == ("model.arch", "augment.policy")
    assert grid.columns == ("none", "elastic")
    assert [(name, [cell.axes["augment.policy"] for cell in cells if cell]) for name, cells in grid.rows] == [
        ("unet", ["none", "elastic"]),
        ("resnet34_unet", ["none", "elastic"]),
    ]


def test_a_third_axis_makes_more_tables(lab: Lab) -> None:
    lab.axes = {**LAB, "model.width": [8, 16]}
    sweep = lab.plan()
    records = read_records(sweep)
    axes = varied(sweep, records)
    assert [grid.title for grid in tabulate(axes, gather(axes, records))] == ["width=8", "width=16"]


def test_trials_that_differ_off_the_axes_are_not_averaged(lab: Lab, page: Callable[[Sweep], str]) -> None:
    lab.axes = {"train.seed": [0, 1]}
    lab.plan()
    lab.fixed = {"data.image_size_px": 128}
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, 0.9)
    assert [(p.group.axes, p.val_dice.n) for p in ranking_of(sweep)] == [
        ({"data.image_size_px": 256}, 2),
        ({"data.image_size_px": 128}, 2),
    ]
    text = page(sweep)
    assert "differ in image size (256, 128)" in text
    assert "differs: 256, 128" in text


def test_the_seed_of_a_record_is_that_of_the_training() -> None:
    status = TrialStatus(Trial("x", {}, Path("none")), "done")
    assert Record(status, {"train.seed": 3, "seed": 4}, None, None, []).seed == 3
    assert Record(status, {}, None, None, []).seed is None
