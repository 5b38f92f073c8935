"""What the page's sections say, by hand-made sweeps and by numbers worked out by hand."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs import report
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec, expand
from jobs.reporting.page import render_page
from jobs.reporting.parquet import unify
from jobs.reporting.sections.axes import (
    BOTTOM,
    SPREAD,
    TOP,
    _scale,
    cut,
    draw_parallel,
    eta_squared,
    importances,
    is_scale,
)
from jobs.reporting.sections.breakdown.rows import gather_rows
from jobs.reporting.sections.calibration import calibrate_cells, ece_of, read_curves
from jobs.reporting.sections.gap import measure_gaps
from jobs.reporting.sections.operation import error_line, group_failures, operate
from jobs.reporting.sections.trials import trial_row
from jobs.reporting.statistics.records import Record, gather, read_records, varied
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from petseg.config.values import trial_id
from petseg.metrics.calibration import build_calibration
from petseg.run_folder.layout import Result, claim_folder, save_result, write_metrics
from shards.command import OK, WRONG_USE, run_command
from shards.manifest import Manifest, Source, Split, save_manifest

AXES = {"model.arch": ["unet", "resnet34_unet"], "augment.policy": ["none", "elastic"], "optim.lr": [0.001, 0.01]}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return plan(tmp_path, AXES | {"train.seed": [0]})


def plan(tmp_path: Path, axes: dict[str, list[Any]]) -> Sweep:
    (tmp_path / "shards").mkdir()
    splits = {"train": Split(90, "0" * 16), "val": Split(10, "1" * 16)}
    manifest = save_manifest(Manifest(Source("drawn", "by hand"), {}, splits, ()), tmp_path / "shards")
    spec = Spec("lab", axes, {"data.shards": str(tmp_path / "shards"), "train.epochs": 3})
    cells = expand(spec)
    sweep = plan_sweep(spec, cells, ShardSets({str(tmp_path / "shards"): manifest}), tmp_path / "runs" / "lab")
    save_sweep(sweep)
    for cell, trial in zip(cells, sweep.trials, strict=True):
        assert trial.id == trial_id(cell.config, manifest.hash)
        claim_folder(cell.config, manifest.hash, trial.folder)
    return sweep


def finish(trial: Trial, dice: float) -> None:
    """3 epochs; val loss is lowest in the second, train loss falls on."""
    rows = [
        {"epoch": e, "step": 10 * e, "train/loss": 0.5 - 0.1 * e, "val/loss": v, "train/dice": dice + 0.02 * e - 0.04}
        | {"val/dice": dice - 0.1 * (3 - e), "perf/seconds": 1800.0}
        for e, v in ((1, 0.5), (2, 0.4), (3, 0.45))
    ]
    write_metrics(list(rows), trial.folder)
    metrics = {"val/dice": dice, "val/temperature": 1.5, "val/all_pet_dice": 0.5}
    result = Result(trial.id, metrics, 3, 3, 100, 2, "node1", "cpu, 1 threads", 60.0, 83.0, 0.01, 84.0, None, 500.0)
    save_result(result, trial.folder)
    trial.write_state(TrialState("done", host="node1", job_id="1"))


def additive(trial: Trial) -> float:
    """Architecture moves Dice by 0.04, augmentation by 0.02, the rate not at all."""
    return 0.8 + 0.04 * (trial.axes["model.arch"] == "unet") + 0.02 * (trial.axes["augment.policy"] == "elastic")


def groups_of(sweep: Sweep) -> tuple[list[str], list[Any], list[Record]]:
    records = read_records(sweep)
    axes = varied(sweep, records)
    return axes, gather(axes, records), records


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


def test_gap_opens_where_val_loss_is_lowest(sweep: Sweep) -> None:
    for trial in sweep.trials:
        finish(trial, 0.8)
    _, groups, _ = groups_of(sweep)
    table = measure_gaps(groups)
    assert (len(table.rows), table.left_out) == (8, 0)
    gap = table.rows[0]
    assert (gap.best.epoch, gap.last.epoch, gap.opens) == (3, 3, 2)
    assert gap.rise == pytest.approx(0.05)
    assert gap.last.dice_gap == pytest.approx(0.02)
    assert gap.last.loss_gap == pytest.approx(0.25)


def test_calibration_is_drawn_where_it_was_kept(sweep: Sweep) -> None:
    for i, trial in enumerate(sweep.trials):
        finish(trial, 0.8 + 0.01 * i)
    _, groups, records = groups_of(sweep)
    groups.reverse()
    assert calibrate_cells(groups).cells == ()
    assert 'id="calibration"' not in render_page(sweep, records)
    last, before = sweep.trials[-1], sweep.trials[-2]
    bins = [
        {"from": 0.6, "to": 0.7, "pixels": 1, "confidence": 0.65, "accuracy": 0.45},
        {"from": 0.9, "to": 1.0, "pixels": 3, "confidence": 0.95, "accuracy": 0.85},
    ]
    splits = {"val": {"as_is": bins, "scaled": []}}
    (last.folder / "calibration.json").write_text(json.dumps({"format_version": 1, "splits": splits}))
    (before.folder / "calibration.json").write_text('{"splits": {"val": {"as_is": [{"pi')
    sheet = calibrate_cells(groups)
    (cell,) = sheet.cells
    assert (sheet.without, sheet.low) == (5, 0.4)
    assert cell.ece == pytest.approx((0.2 + 3 * 0.1) / 4)
    assert [curve.kind for curve in cell.curves] == ["as-is"]
    assert [x for x, *_ in cell.curves[0].dots] == sorted(x for x, *_ in cell.curves[0].dots)
    assert 'id="calibration"' in render_page(sweep, records)


def test_ece_is_shown_before_and_after_temperature(sweep: Sweep) -> None:
    for i, trial in enumerate(sweep.trials):
        finish(trial, 0.8 + 0.01 * i)
    _, groups, _ = groups_of(sweep)
    as_is = [{"from": 0.9, "to": 1.0, "pixels": 4, "confidence": 0.95, "accuracy": 0.75}]
    scaled = [{"from": 0.7, "to": 0.8, "pixels": 4, "confidence": 0.78, "accuracy": 0.75}]
    splits = {"val": {"as_is": as_is, "scaled": scaled}}
    (sweep.trials[-1].folder / "calibration.json").write_text(json.dumps({"splits": splits}))
    (cell,) = calibrate_cells(groups[::-1]).cells
    assert (cell.ece, cell.ece_scaled) == (pytest.approx(0.2), pytest.approx(0.03))
    assert [curve.kind for curve in cell.curves] == ["as-is", "scaled"]
    assert [[words for *_, words in curve.dots] for curve in cell.curves] == [
        ["confidence 0.950: 0.750 right, 1e+02 % of pixels"],
        ["confidence 0.780: 0.750 right, 1e+02 % of pixels"],
    ]


def test_ece_of_a_stored_curve_matches_the_metric(tmp_path: Path) -> None:
    calibration = build_calibration(2, torch.device("cpu"))
    logits = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    calibration.add(logits, (logits[:, 1] > 0.3).long())
    rows = calibration.reliability().rows()
    content = {"splits": {"val": {"as_is": rows, "scaled": calibration.scaled(2.0).rows()}}}
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    curves = read_curves(tmp_path, "val")
    assert curves
    assert ece_of(curves["as-is"]) == pytest.approx(calibration.reliability().ece)
    assert ece_of(curves["scaled"]) == pytest.approx(calibration.scaled(2.0).ece)


def test_operation_counts_failures_once_and_starts_all(sweep: Sweep) -> None:
    first, second, third, *others = sweep.trials
    for trial in others:
        finish(trial, 0.8)
    traceback = 'Traceback (most recent call last):\n  File "petseg/x.py", line 1, in f\nKeyError: <b>'
    for trial in (first, second):
        log = sweep.folder / "logs" / f"{trial.id}_0_log.out"
        log.parent.mkdir(exist_ok=True)
        log.write_text(traceback + "\n")
        sweep.add_submissions([Submission(trial.id, trial.id, "local", str(log))])
        trial.write_state(TrialState("failed", job_id=trial.id, error="KeyError: <b>"))
        write_metrics([{"epoch": 1, "perf/seconds": 1800.0, "perf/energy_j": 9e5, "val/dice": 0.1}], trial.folder)
    second.write_state(replace(second.state(), at_once=2))
    attempt = {"host": "node2", "job_id": "1", "first_step": 0, "time": 0.0}
    attempts = [{"number": 1, "code": "abc", **attempt}, {"number": 2, "code": "def", **attempt, "first_step": 10}]
    (third.folder / "lives.json").write_text(json.dumps(attempts))
    _, groups, records = groups_of(sweep)
    (failure,) = group_failures(records)
    assert (failure.count, failure.cause, failure.first_line) == (2, "code", "KeyError: <b>")
    assert failure.traceback == traceback
    operation = operate(sweep, groups, [trial_row(record, "h") for record in records])
    assert (operation.starts, operation.restarts, operation.restarted) == (2, 1, 1)
    assert operation.cost
    assert (operation.cost.unit, operation.cost.energy_kwh) == ("process hours", 0.25 + 0.125)
    assert (operation.cost.used_h, operation.cost.wasted_h) == (8.25, 0.75)  # the second had half of what it ran on
    assert operation.cost.asked_h is None
    assert [key for key, _ in operation.columns] == [
        "images_per_s", "headroom", "data_wait", "peak_memory_mb", "train_s",
    ]  # fmt: skip
    text = render_page(sweep, records)
    assert text.count("petseg/x.py&#34;, line 1") == 1
    assert "KeyError: &lt;b&gt;" in text
    assert "abc, then def" in text
    assert "0.375 kWh in GPUs" in text


def test_trials_at_once_share_the_cost_of_their_job(sweep: Sweep) -> None:
    """Five trials of 1.5 hours and one without a job, two at a time in one of 4 GPUs and an hour."""
    resources = {"gpus_per_node": 4, "timeout_min": 60}
    (sweep.folder / "launch.json").write_text(json.dumps({"resources": resources}))
    for trial in sweep.trials[:5]:
        finish(trial, 0.8)
        trial.write_state(replace(trial.state(), slot=1, at_once=2))
        sweep.add_submissions([Submission(trial.id, "1", "slurm", "")])
    _, groups, records = groups_of(sweep)
    cost = operate(sweep, groups, [trial_row(record, "h") for record in records]).cost
    assert cost
    assert (cost.used_h, cost.asked_h) == (pytest.approx(5 * 1.5 * 4 / 2), pytest.approx(4.0))
    assert (cost.train_s, cost.energy_kwh) == (5 * 1.5 * 3600, None)


def test_error_line_is_the_last_line_without_frames() -> None:
    text = "Traceback (most recent call last):\n  File x\n    f()\nValueError: a: b\n  more of it\n"
    assert error_line(text) == "ValueError: a: b"
    assert error_line("") == ""


def test_a_trial_shows_the_command_that_reproduces_it(sweep: Sweep) -> None:
    trial = sweep.trials[0]
    finish(trial, 0.8)
    record = read_records(sweep)[0]
    row = trial_row(record, sweep.manifest_hash)
    facts = dict(row.facts)
    assert facts["data"] == sweep.manifest_hash
    assert facts["config"] == f"{trial.id}/config.json"
    assert (facts["processes"], facts["host"], facts["device"]) == ("2", "node1", "cpu, 1 thread")
    assert row.command.startswith("python petseg/train.py")
    (trial.folder / "lives.json").write_text('[{"number": 1')
    assert trial_row(record, sweep.manifest_hash).attempts == ()


def test_parquet_has_the_rows_with_their_types(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for trial in sweep.trials[1:]:
        finish(trial, additive(trial))
    assert run_command(report.main, [str(sweep.folder), "--format", "parquet"]) == OK
    table = parquet.read_table(sweep.folder / "leaderboard.parquet")
    assert table.num_rows == 8
    assert str(table.schema.field("val_dice").type) == "double"
    assert table["optim.lr"].to_pylist() == pytest.approx([row["optim.lr"] for row in table.to_pylist()])
    assert table["val_dice"].to_pylist()[-1] is None
    assert table.schema.metadata[b"sweep"] == b"lab"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run_command(report.main, [str(sweep.folder), "--format", "parquet"]) == WRONG_USE
    assert "pip install 'petseg[parquet]'" in capsys.readouterr().err


def test_columns_of_one_type() -> None:
    assert unify([1, 0.5, None]) == [1.0, 0.5, None]
    assert unify(["unet", None]) == ["unet", None]
    assert unify([1, "auto", None]) == ["1", "auto", None]
    assert unify([True, 2]) == ["True", "2"]


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


def test_the_best_dice_and_the_lowest_loss_are_shown_with_their_epochs(sweep: Sweep) -> None:
    """Of a trial without a result as far as it is; of a finished one what the result says."""
    trial, done, planned = sweep.trials[:3]
    rows = [(1, 0.6, 0.5), (2, 0.8, 0.3), (3, float("nan"), 0.2), (4, 0.7, 0.4)]
    write_metrics([{"epoch": e, "step": e, "val/dice": d, "val/loss": v} for e, d, v in rows], trial.folder)
    finish(done, 0.9)
    shown = {record.id: trial_row(record, "h") for record in read_records(sweep)}
    assert (shown[trial.id].best_dice, shown[trial.id].lowest_loss) == ((0.8, 2), (0.2, 3))
    assert (shown[done.id].best_dice, shown[done.id].lowest_loss) == ((0.9, 3), (0.4, 2))
    assert (shown[planned.id].best_dice, shown[planned.id].lowest_loss) == (None, None)


def test_parts_of_the_pictures_come_in_alphabetical_order() -> None:
    rows = gather_rows(["b", "a", "b", "c"], np.array([[0.2, 0.5, 0.4, 0.9], [0.0, 0.1, 1.0, 0.3]]))
    assert [(row.name, row.num_pictures) for row in rows] == [("a", 1), ("b", 2), ("c", 1)]
    assert [[mean.value for mean in row.means] for row in rows] == [[0.5, 0.1], pytest.approx([0.3, 0.5]), [0.9, 0.3]]
