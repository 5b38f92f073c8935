"""Loss and Dice over the epochs, train and val: the mean, lowest and highest over the seeds of each group."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reporting.statistics.records import Group, Record, axis_text

METRICS = {"loss": "Loss", "dice": "Dice"}
SPLITS = ("train", "val")
MAX_PANELS = 24


@dataclass(frozen=True)
class Line:
    """One number over the epochs: mean, lowest and highest over the seeds that reached the epoch."""

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One group's lines by name (train/loss, val/loss, train/dice, val/dice)."""

    label: str
    colour: int
    n: int
    lines: dict[str, Line]
    best_dice_epoch: int | None  # of the mean over seeds
    lowest_loss_epoch: int | None


@dataclass(frozen=True)
class Panel:
    """The curves that share a frame."""

    title: str
    curves: tuple[Curve, ...]


def collect(axes: Sequence[str], groups: Sequence[Group]) -> list[Panel]:
    """A panel per combination of all axes but the second (the only one, if there is one), whose values are colours."""
    colour_axis = next(iter([*axes[1:2], *axes]), "")
    colours = list(dict.fromkeys(group.axes[colour_axis] for group in groups)) if colour_axis else []
    panels: dict[str, list[Curve]] = {}
    for group in groups:
        others = [axis_text(name, value) for name, value in group.axes.items() if name != colour_axis]
        label = axis_text(colour_axis, group.axes[colour_axis]) if colour_axis else "all trials"
        colour = colours.index(group.axes[colour_axis]) if colour_axis else 0
        if curve := curve_of(group, label, colour):
            panels.setdefault(" · ".join(others), []).append(curve)
    return [Panel(title, tuple(curves)) for title, curves in panels.items()][:MAX_PANELS]


def curve_of(group: Group, label: str, colour: int) -> Curve | None:
    """The curve of the finished trials, or of those that still run while none has finished; None before an epoch."""
    records = group.done or tuple(record for record in group.records if record.rows)
    names = [f"{split}/{metric}" for metric in METRICS for split in SPLITS]
    lines = {name: line for name in names if (line := line_of(records, name))}
    if not lines:
        return None
    best, lowest = _epoch_of(lines, "val/dice", max), _epoch_of(lines, "val/loss", min)
    return Curve(label, colour, len(records), lines, best, lowest)


def line_of(records: Sequence[Record], name: str) -> Line | None:
    by_epoch: dict[int, list[float]] = {}
    for record in records:
        for row in record.rows:
            if math.isfinite(row.get(name, math.nan)):
                by_epoch.setdefault(int(row["epoch"]), []).append(float(row[name]))
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    return Line(
        tuple(epochs),
        tuple(statistics.fmean(v) for v in values),
        tuple(min(v) for v in values),
        tuple(max(v) for v in values),
    )


def _epoch_of(lines: dict[str, Line], name: str, choose: Callable[..., Any]) -> int | None:
    line = lines.get(name)
    return choose(zip(line.mean, line.epochs, strict=True), key=lambda pair: pair[0])[1] if line else None
