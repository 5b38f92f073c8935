"""An estimate of a sweep's cost for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.cost.estimate import Estimate, TrialCost
from jobs.runs.trial import SEED_AXIS
from shards.terminal import duration

MAX_LISTED = 40


def render(estimate: Estimate, most: int = MAX_LISTED) -> RenderableType:
    """The estimate for a terminal: the sum, a line for each of the first `most` cells, and each note once.

    Trials that differ only in their seed share a cell.
    """
    per_job = estimate.gpus or estimate.cores
    table = Table()
    for column in ("cell", "trials", "epochs", "time each", estimate.unit):
        table.add_column(column, justify="left" if column == "cell" else "right", overflow="fold")
    cells: dict[str, list[TrialCost]] = {}
    for cost in estimate.trials:
        cells.setdefault(cost.trial.cell, []).append(cost)
    for label, costs in [*cells.items()][:most]:
        seconds = [cost.seconds for cost in costs if cost.seconds is not None]
        is_known = len(seconds) == len(costs)
        table.add_row(
            Text(label),
            str(len(costs)),
            _range([cost.epochs for cost in costs]),
            duration(fmean(seconds)) if is_known else "?",
            f"{sum(seconds) * per_job / 3600:.3g}" if is_known else "?",
        )
    rest = [Text(f"and {len(cells) - most} more cells")] if len(cells) > most else []
    notes = Table.grid(padding=(0, 1))
    for note in _notes(estimate, most):
        notes.add_row("-", Text(note, no_wrap=False, overflow="fold"))
    return Group(Text(_title(estimate)), table, *rest, notes)


def _range(epochs: Sequence[float | None]) -> str:
    """The remaining epochs, as `3-10` if the trials of a cell differ."""
    if None in epochs:
        return "?"
    known = [round(one, 1) for one in epochs if one is not None]
    low, high = min(known), max(known)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _notes(estimate: Estimate, most: int) -> Iterator[str]:
    sources = Counter(
        ("not known: " if cost.seconds is None else "known by ") + cost.source for cost in estimate.trials
    )
    for source, count in sources.most_common(most):
        yield source if len(sources) == 1 else f"{count} trials: {source}"
    if len(sources) > most:
        yield f"and {len(sources) - most} more sources"
    if estimate.host_memory_gib is not None:
        yield f"memory of a node: at most {estimate.host_memory_gib:.2f} GiB"
    if estimate.gpu_memory_gib is not None:
        yield f"memory of a GPU: at most {estimate.gpu_memory_gib:.2f} GiB"
    for axis in (axis for axis in estimate.axes if axis.name != SEED_AXIS):
        values = ", ".join(f"{value} {duration(seconds)}" for value, seconds in [*axis.seconds.items()][:most])
        more = f" and {len(axis.seconds) - most} more values" if len(axis.seconds) > most else ""
        yield f"{axis.name}: {values}{more} a trial in the mean, {axis.spread:.2g} times between them"
    yield from estimate.notes


def _title(estimate: Estimate) -> str:
    hours = estimate.hours(estimate.unit)
    total = "an unknown number of" if hours is None else f"about {hours:.3g}"
    end = f", {duration(estimate.end_s)} with {estimate.max_parallel} at a time" if estimate.end_s else ""
    return f"{len(estimate.trials)} trials to run: {total} {estimate.unit}{end}"
