"""An estimate of a sweep's cost for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.cost import Estimate
from petseg.progress import duration

MAX_LISTED = 40


def render(found: Estimate) -> RenderableType:
    """The estimate for a terminal: a line per trial, the sum, the axes, and where it comes from."""
    per_job = found.gpus or found.cores
    table = Table(title=Text(_title(found)), title_justify="left")
    for column in ("trial", "axes", "epochs", "time", found.unit, "host GiB", "GPU GiB", "known by"):
        table.add_column(column, justify="left" if column in ("trial", "axes", "known by") else "right")
    for cost in found.trials[:MAX_LISTED]:
        hours = None if cost.seconds is None else cost.seconds * per_job / 3600
        table.add_row(
            cost.trial.id, Text(cost.trial.label), "?" if cost.epochs is None else f"{round(cost.epochs, 1):g}",
            "?" if cost.seconds is None else duration(cost.seconds), "?" if hours is None else f"{hours:.3g}",
            _gib(cost.host_memory_gib), _gib(cost.gpu_memory_gib), Text(cost.source),
        )  # fmt: skip
    lines = [f"and {len(found.trials) - MAX_LISTED} more trials"] if len(found.trials) > MAX_LISTED else []
    for axis in found.axes:
        values = ", ".join(f"{value} {duration(seconds)}" for value, seconds in axis.seconds.items())
        lines.append(f"{axis.name}: {values} a trial in the mean, {axis.spread:.2g} times between them")
    return Group(table, *(Text(line) for line in (*lines, *found.notes)))


def _title(found: Estimate) -> str:
    hours = found.hours(found.unit)
    total = "an unknown number of" if hours is None else f"about {hours:.3g}"
    end = f", {duration(found.end_s)} after the first start with {found.max_parallel} at a time" if found.end_s else ""
    return f"{len(found.trials)} trials to run: {total} {found.unit}{end}"


def _gib(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"
