"""Records, groups and their ranks."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.reporting.statistics.records import (
    Group,
    Record,
    Spread,
    gather,
    read_record,
    read_records,
    spread_of,
    tabulate,
    varied,
)
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import load_config, load_result
from tests.jobs.reporting.written_sweep import DICE, LAB, Lab, finish, ranking_of


def test_spread_is_mean_and_sample_sd() -> None:
    spread = spread_of([0.899, 0.900, 0.904])
    assert spread is not None
    assert spread.mean == pytest.approx(0.901)
    assert spread.sd == pytest.approx(((0.002**2 + 0.001**2 + 0.003**2) / 2) ** 0.5)
    assert (spread.low, spread.high, spread.n) == (0.899, 0.904, 3)
    assert spread_of([0.9]) == Spread(0.9, None, 0.9, 0.9, 1)
    assert spread_of([0.25, 0.75]) == Spread(0.5, pytest.approx(0.125**0.5), 0.25, 0.75, 2)
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


@pytest.fixture
def seeds(lab: Lab) -> Sweep:
    """Three finished seeds."""
    lab.axes = {"train.seed": [0, 1, 2]}
    sweep = lab.plan()
    for trial in sweep.trials:
        finish(trial, 0.9)
    return sweep


def test_a_record_has_what_makes_its_numbers_and_its_place_on_the_axes(seeds: Sweep) -> None:
    """Not the hash of its shard set: by that, trials of two sets would be cells apart, whatever their axes."""
    trial = replace(seeds.trials[0], axes={"train.seed": 7, "model.arch": "vgg"})
    record = read_record(TrialStatus(trial, "done"))
    assert "manifest_hash" not in record.values
    assert (record.values["model.arch"], record.values["train.seed"], record.values["train.epochs"]) == ("vgg", 7, 2)
    assert record.config == load_config(trial.folder)["config"]
    assert (record.id, record.result) == (trial.id, load_result(trial.folder))
    assert [row["epoch"] for row in record.rows] == [1, 2]


def test_a_record_without_a_readable_config_is_placed_by_its_axes(seeds: Sweep) -> None:
    trial = seeds.trials[0]
    (trial.folder / "config.json").write_text("{")
    record = read_record(TrialStatus(trial, "done"))
    assert (record.values, record.config) == (trial.axes, None)
    assert record.result == load_result(trial.folder)


def test_a_result_that_cannot_be_read_is_left_out_and_warned_of(seeds: Sweep, caplog: pytest.LogCaptureFixture) -> None:
    trial = seeds.trials[0]
    (trial.folder / "result.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        record = read_record(TrialStatus(trial, "done"))
    assert record.result is None
    assert len(record.rows) == 2
    (said,) = caplog.messages
    assert said.startswith(f"left out: {trial.folder / 'result.json'} ")


def test_statuses_that_are_known_are_not_asked_for_again(seeds: Sweep) -> None:
    rows = [TrialStatus(trial, "unknown") for trial in seeds.trials[1:]]
    assert [record.trial_status for record in read_records(seeds, rows)] == rows
    assert read_records(seeds, []) == []
    assert [record.trial_status.status for record in read_records(seeds)] == ["done"] * 3


def test_a_metric_that_some_seeds_have_not_measured_is_that_of_the_others(seeds: Sweep) -> None:
    """A seed that was not measured on test, and one that is still running."""
    first, second, third = read_records(seeds)[:3]
    assert first.result
    without = {name: value for name, value in first.result.metrics.items() if name != "test/dice"}
    group = Group(
        {}, (replace(first, result=replace(first.result, metrics=without)), second, replace(third, result=None))
    )
    test, val = group.spread("test/dice"), group.spread("val/dice")
    assert test == Spread(pytest.approx(0.89), None, pytest.approx(0.89), pytest.approx(0.89), 1)
    assert val
    assert val.n == 2


def test_fields_in_which_trials_differ_are_the_axes_and_then_others_without_the_seed(lab: Lab) -> None:
    """A trial whose field is not known differs from none in it."""
    sweep, status = lab.plan(), TrialStatus(Trial("x", {}, Path("none")), "done")
    values = [
        {"data.fit": "crop", "train.seed": 0, "augment.policy": "none", "model.arch": "unet", "optim.lr": 0.1},
        {"data.fit": "squash", "train.seed": 1, "augment.policy": "elastic", "model.arch": "unet", "optim.lr": 0.1},
        {"train.seed": 2, "model.arch": "resnet34_unet"},
    ]
    records = [Record(status, own, None, None, []) for own in values]
    assert varied(sweep, records) == ["model.arch", "augment.policy", "data.fit"]
    assert varied(sweep, records[:1]) == []
