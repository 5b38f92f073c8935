"""The page: one HTML file that needs nothing beside itself."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.report_data import NOISE_DICE, Grid, Group, Record, Spread, gather, rank, tabulate, varied
from jobs.report_pictures import lay_out
from jobs.report_plots import CURVES, collect, draw
from jobs.report_protocol import floor_of, protocol, state_counts, warnings
from jobs.reproduce import train_command
from jobs.trial import Sweep
from petseg.overlay import MISSED_RGB, PREDICTION_RGB, TRUTH_RGB, WRONG_RGB

OVERLAY_COLOURS = (
    (PREDICTION_RGB, "right pet"),
    (MISSED_RGB, "missed pet"),
    (WRONG_RGB, "wrongly called pet"),
    (TRUTH_RGB, "true outline"),
)
MIN_HEAT_SPAN = 0.02  # differences smaller than this stay pale, lest noise look like a finding
MAX_HEAT = 60  # per cent of full colour: the numbers stay readable


@dataclass(frozen=True)
class Heat:
    """A table of one metric, with how deep each cell is coloured."""

    metric: str
    name: str
    grids: list[Grid]
    low: float
    high: float
    best: float | None  # framed; test chooses nothing

    def depth(self, spread: Spread) -> int:
        """Per cent of full colour."""
        return round(MAX_HEAT * (spread.mean - self.low) / max(self.high - self.low, MIN_HEAT_SPAN))


@dataclass(frozen=True)
class TrialRow:
    """A trial as the last table shows it."""

    record: Record
    axes: str
    best_dice: tuple[float, int] | None  # and its epoch
    lowest_loss: tuple[float, int] | None
    command: str


def render_page(sweep: Sweep, records: Sequence[Record]) -> str:
    """report.html of a sweep; the same folder gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    axes = varied(sweep, records)
    groups = gather(axes, records)
    places = rank(groups)
    grids = tabulate(axes, groups)
    panels = draw(collect(axes, groups))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"quantity": quantity, "duration": duration, "signed": signed}
    return environment.get_template("report.html.j2").render(
        sweep=sweep,
        records=records,
        counts=state_counts(records),
        newest=newest(records),
        protocol=protocol(sweep, records),
        warnings=warnings(records, axes, list(sweep.axes)),
        axes=axes,
        places=places,
        floor=floor_of(records, "val"),
        heats=[
            heat
            for metric, name in (("val/dice", "val Dice"), ("test/dice", "test Dice"))
            if (heat := heat_of(metric, name, grids, groups))
        ],
        strip=strip_scale(groups),
        panels=panels,
        num_curves=len(CURVES),
        legend={curve.label: curve.colour for panel in panels for curve in panel.curves},
        colours=OVERLAY_COLOURS,
        sheet=lay_out([place.group for place in places]),
        trials=[trial_row(record) for record in records],
        noise=NOISE_DICE,
    )


def heat_of(metric: str, name: str, grids: list[Grid], groups: Sequence[Group]) -> Heat | None:
    """None if no trial has measured it; but val Dice is shown in any case, for what is missing."""
    means = [spread.mean for group in groups if (spread := group.spread(metric))]
    if not means:
        return Heat(metric, name, grids, 0.0, 1.0, None) if metric == "val/dice" else None
    return Heat(metric, name, grids, min(means), max(means), max(means) if metric == "val/dice" else None)


def strip_scale(groups: Sequence[Group]) -> tuple[float, float]:
    """Lowest val Dice of any seed, and the span to the highest."""
    spreads = [spread for group in groups if (spread := group.spread("val/dice"))]
    low = min((spread.low for spread in spreads), default=0.0)
    return low, max((spread.high for spread in spreads), default=1.0) - low or 1.0


def trial_row(record: Record) -> TrialRow:
    dice, loss = (
        [(row[name], int(row["epoch"])) for row in record.rows if math.isfinite(row.get(name, math.nan))]
        for name in ("val/dice", "val/loss")
    )
    best = max(dice, key=lambda pair: pair[0], default=None)
    if record.result:
        best = record.result.metrics["val/dice"], record.result.best_epoch
    return TrialRow(
        record,
        record.standing.trial.label,
        best,
        min(loss, key=lambda pair: pair[0], default=None),
        reproduce(record),
    )


def reproduce(record: Record) -> str:
    if record.config is None:
        return ""
    try:
        return train_command(record.config)
    except ValueError as error:
        return f"# not a config of this version: {error}"


def newest(records: Sequence[Record]) -> str:
    """When a trial last said something, in UTC; empty if none has begun."""
    times = [float(record.standing.trial.state().get("time", 0)) for record in records]
    when = max(times, default=0.0)
    return datetime.datetime.fromtimestamp(when, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC") if when else ""


def quantity(value: Any) -> str:
    """31037698 -> 31.0 M."""
    number = float(value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d}"


def signed(value: float) -> str:
    """With a true minus sign."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
