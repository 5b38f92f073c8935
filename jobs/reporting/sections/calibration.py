"""Reliability curves of the best cells: how often a pixel of some confidence is right, before and after temperature."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.reporting.statistics.records import Group
from petseg.run_folder.layout import CALIBRATION_NAME
from shards.files import read_json

MAX_CELLS = 6
WIDTH, HEIGHT, MARGIN_LEFT, MARGIN_BELOW, MARGIN = 230.0, 190.0, 46.0, 26.0, 8.0
LOWEST_CONFIDENCE = 0.5  # of two classes the predicted one has no less; of more it may have
LEAST_SHARE = 1e-5  # of all pixels: a bin with fewer says nothing, and its point jumps about
RADII = (1.4, 4.6)


@dataclass(frozen=True)
class Reliability:
    """One curve in the drawing's pixels."""

    kind: str  # as-is | scaled
    points: str  # of a polyline
    dots: tuple[tuple[float, float, float, str], ...]  # x, y, radius by the share of pixels, in words


@dataclass(frozen=True)
class CellCalibration:
    """A cell's best seed."""

    label: str
    seed: Any
    split: str
    ece: float
    ece_scaled: float | None
    temperature: float | None
    curves: tuple[Reliability, ...]


@dataclass(frozen=True)
class Axes:
    """The scales of the drawing, which end at 1."""

    least: float  # the lowest confidence
    low: float  # the lowest share right

    def x(self, confidence: float) -> float:
        share = (confidence - self.least) / (1 - self.least)
        return MARGIN_LEFT + share * (WIDTH - MARGIN_LEFT - MARGIN)

    def y(self, right: float) -> float:
        return MARGIN + (1 - (right - self.low) / (1 - self.low)) * (HEIGHT - MARGIN_BELOW - MARGIN)


@dataclass(frozen=True)
class CalibrationSheet:
    """The cells, on one scale."""

    cells: tuple[CellCalibration, ...]
    without: int  # finished cells, among the first MAX_CELLS, whose runs kept no curve
    low: float  # the lowest share right on the scale
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    diagonal: tuple[float, float, float, float]


def calibrate_cells(groups: Sequence[Group], split: str = "val") -> CalibrationSheet:
    """The calibration of the best seed of each of the first cells. groups: best first."""
    best = [(group, record) for group in groups if (record := group.best())][:MAX_CELLS]
    measured = [(group, record, kept) for group, record in best if (kept := read_curves(record.trial.folder, split))]
    rows = [row for *_, kept in measured for bins in kept.values() for row in bins]
    low = max(0.0, min(0.5, *(int(10 * row["accuracy"]) / 10 for row in rows))) if rows else 0.5
    least = min(LOWEST_CONFIDENCE, *(int(10 * row["confidence"]) / 10 for row in rows)) if rows else LOWEST_CONFIDENCE
    axes = Axes(max(0.0, least), low)
    corner = max(axes.least, low)
    cells = []
    for group, record, kept in measured:
        metrics = record.result.metrics if record.result else {}
        curves = tuple(_curve(kind, bins, axes) for kind, bins in kept.items())
        cells.append(
            CellCalibration(
                label=group.label,
                seed=record.seed,
                split=split,
                ece=ece_of(kept["as-is"]),
                ece_scaled=ece_of(kept["scaled"]) if "scaled" in kept else None,
                temperature=metrics.get(f"{split}/temperature"),
                curves=curves,
            )
        )
    return CalibrationSheet(
        cells=tuple(cells),
        without=len(best) - len(measured),
        low=low,
        x_ticks=tuple((axes.x(value), f"{value:g}") for value in (axes.least, (axes.least + 1) / 2, 1.0)),
        y_ticks=tuple((axes.y(value), f"{value:g}") for value in (low, (low + 1) / 2, 1.0)),
        diagonal=(axes.x(corner), axes.y(corner), axes.x(1.0), axes.y(1.0)),
    )


def read_curves(folder: Path, split: str) -> dict[str, list[dict[str, float]]] | None:
    """Bins by kind (as-is, scaled) from calibration.json; None if the run kept none, as those of earlier versions."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept: Any = read_json(folder / CALIBRATION_NAME)["splits"][split]
        named = {"as-is": kept["as_is"], "scaled": kept["scaled"]}
        curves = {
            kind: [{str(key): float(value) for key, value in row.items()} for row in bins]
            for kind, bins in named.items()
            if bins
        }
        return curves if "as-is" in curves and all("accuracy" in row for row in curves["as-is"]) else None
    return None


def ece_of(bins: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error as in petseg.metrics.calibration: sum of pixel share * |share right - confidence|."""
    pixels = sum(row["pixels"] for row in bins)
    return sum(row["pixels"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / max(pixels, 1)


def _curve(kind: str, bins: Sequence[Mapping[str, float]], axes: Axes) -> Reliability:
    pixels = max(sum(row["pixels"] for row in bins), 1)
    dots = []
    for row in bins:
        share = row["pixels"] / pixels
        if share >= LEAST_SHARE:
            words = f"confidence {row['confidence']:.3f}: {row['accuracy']:.3f} right, {100 * share:.2g} % of pixels"
            radius = RADII[0] + (RADII[1] - RADII[0]) * share**0.5
            dots.append(
                (round(axes.x(row["confidence"]), 1), round(axes.y(row["accuracy"]), 1), round(radius, 1), words)
            )
    return Reliability(kind, " ".join(f"{x},{y}" for x, y, *_ in dots), tuple(dots))
