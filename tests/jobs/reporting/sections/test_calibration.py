"""The section about calibration: curves and ECE, by numbers worked out by hand."""

import json
from pathlib import Path

import pytest
import torch

from jobs.reporting.page import render_page
from jobs.reporting.sections.calibration import calibrate_cells, ece_of, read_curves
from jobs.runs.trial import Sweep
from petseg.metrics.calibration import build_calibration
from tests.jobs.reporting.short_sweep import finish, groups_of


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
