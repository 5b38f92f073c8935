"""The section about calibration: curves and ECE, by numbers worked out by hand."""

import json
from pathlib import Path

import pytest
import torch

from jobs.reporting.page import render_page
from jobs.reporting.sections import calibration
from jobs.reporting.sections.calibration import (
    HEIGHT,
    LEAST_SHARE,
    MARGIN,
    MARGIN_BELOW,
    MARGIN_LEFT,
    RADII,
    WIDTH,
    Axes,
    calibrate_cells,
    ece_of,
    read_curves,
)
from jobs.reporting.statistics.records import Group, Record
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import TrialStatus
from petseg.metrics.calibration import build_calibration
from petseg.run_folder.layout import Result
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


def cell(folder: Path, bins: list[dict[str, float]] | None, scaled: list[dict[str, float]] | None = None) -> Group:
    """A cell of one seed, whose folder keeps these bins; None: no file."""
    folder.mkdir()
    if bins is not None:
        content = {"splits": {"val": {"as_is": bins, "scaled": scaled or []}}}
        (folder / "calibration.json").write_text(json.dumps(content))
    result = Result("x", {"val/dice": 0.5, "val/temperature": 1.5}, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)
    status = TrialStatus(Trial("x", {}, folder), "done")
    return Group({"arch": folder.name}, (Record(status, {"train.seed": 3}, None, result, []),))


def row(confidence: float, accuracy: float, pixels: int = 1) -> dict[str, float]:
    return {"pixels": pixels, "confidence": confidence, "accuracy": accuracy}


@pytest.mark.parametrize(
    ("bins", "least", "low"),
    [
        ([row(0.95, 0.95)], 0.5, 0.5),
        ([row(0.95, 0.37), row(0.55, 0.95)], 0.5, 0.3),
        ([row(0.28, 0.95), row(0.95, 0.95)], 0.2, 0.5),  # of several classes, the highest may be less than a half
        ([row(0.0, 0.0)], 0.0, 0.0),
    ],
)
def test_the_scales_begin_where_all_points_are_seen(
    tmp_path: Path, bins: list[dict[str, float]], least: float, low: float
) -> None:
    sheet = calibrate_cells([cell(tmp_path / "a", bins)])
    assert sheet.low == low
    assert [text for _, text in sheet.x_ticks] == [f"{value:g}" for value in (least, (least + 1) / 2, 1)]
    assert [text for _, text in sheet.y_ticks] == [f"{value:g}" for value in (low, (low + 1) / 2, 1)]
    axes, corner = Axes(least, low), max(least, low)
    assert sheet.x_ticks[0][0] == axes.x(least) == MARGIN_LEFT
    assert sheet.x_ticks[2][0] == axes.x(1.0) == WIDTH - MARGIN
    assert sheet.y_ticks[0][0] == axes.y(low) == HEIGHT - MARGIN_BELOW
    assert sheet.y_ticks[2][0] == axes.y(1.0) == MARGIN
    assert sheet.diagonal == (axes.x(corner), axes.y(corner), axes.x(1.0), axes.y(1.0))


def test_a_cell_without_a_curve_is_counted_and_one_beyond_the_limit_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MAX_CELLS", 3)
    bins = [row(0.9, 0.75)]
    kept = {"a": (bins, None), "b": (None, None), "c": (bins, bins), "d": (bins, None)}
    sheet = calibrate_cells([cell(tmp_path / name, *curves) for name, curves in kept.items()])
    assert ([one.label for one in sheet.cells], sheet.without) == (["a", "c"], 1)
    first, second = sheet.cells
    assert (first.seed, first.split, first.temperature) == (3, "val", 1.5)
    assert (first.ece, first.ece_scaled) == (pytest.approx(0.15), None)
    assert (second.ece, second.ece_scaled) == (pytest.approx(0.15), pytest.approx(0.15))
    empty = calibrate_cells([])
    assert (empty.cells, empty.without, empty.low) == ((), 0, 0.5)


def test_bins_of_hardly_any_pixel_have_no_dot_and_dots_grow_with_their_share(tmp_path: Path) -> None:
    bins = [row(0.6, 0.5, pixels=1), row(0.8, 0.75, pixels=25_000), row(1.0, 1.0, pixels=75_000)]
    sheet = calibrate_cells([cell(tmp_path / "a", bins)])
    (curve,) = sheet.cells[0].curves
    shares = [one["pixels"] / sum(one["pixels"] for one in bins) for one in bins]
    assert shares[0] < LEAST_SHARE < shares[1]
    radii = [round(RADII[0] + (RADII[1] - RADII[0]) * share**0.5, 1) for share in shares[1:]]
    assert [radius for *_, radius, _ in curve.dots] == radii
    assert curve.points == " ".join(f"{x},{y}" for x, y, *_ in curve.dots)
    assert [words for *_, words in curve.dots] == [
        "confidence 0.800: 0.750 right, 25 % of pixels", "confidence 1.000: 1.000 right, 75 % of pixels",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"splits": {}}', '{"splits": {"val": {"as_is": [], "scaled": []}}}',
     '{"splits": {"val": {"as_is": [{"pixels": 1}], "scaled": []}}}',
     '{"splits": {"val": {"as_is": [{"accuracy": "high"}], "scaled": []}}}'],
)  # fmt: skip
def test_a_file_of_another_form_is_as_if_no_curve_was_kept(tmp_path: Path, content: str) -> None:
    assert read_curves(tmp_path, "val") is None
    (tmp_path / "calibration.json").write_text(content)
    assert read_curves(tmp_path, "val") is None
