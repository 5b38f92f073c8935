"""The trials of a sweep as records, their groups of seeds, the ranking and tables of the groups."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.runs.trial import SEED_AXIS, Sweep, Trial
from jobs.state.observed import observe
from jobs.state.trial_status import TrialStatus
from petseg.config.values import flatten
from petseg.run_folder.layout import Result, load_config, warn_once

NOISE_DICE = 0.003  # reruns of one config differ by about this much: a smaller difference says nothing
MAX_GRIDS = 12
LEAST_FILLED = 0.25  # share of a table's cells that the sweep has


@dataclass(frozen=True)
class Record:
    """One trial with the content of its folder."""

    trial_status: TrialStatus
    values: dict[str, Any]  # dotted config fields that make its numbers, and its values on the sweep's axes
    config: dict[str, Any] | None  # None: its folder has no readable config.json
    result: Result | None
    rows: list[dict[str, Any]]  # one per epoch, oldest first

    @property
    def trial(self) -> Trial:
        return self.trial_status.trial

    @property
    def id(self) -> str:
        return self.trial.id

    @property
    def is_pruned(self) -> bool:
        """Stopped early: it has no result, and is compared with nothing that has one."""
        return self.trial_status.status == "pruned"

    @property
    def seed(self) -> Any:
        return self.values.get(SEED_AXIS)


@dataclass(frozen=True)
class Spread:
    """A number over seeds. sd is the sample standard deviation (n - 1 below the line), None for a single seed."""

    mean: float
    sd: float | None
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Group:
    """The trials that differ in their seed alone."""

    axes: dict[str, Any]  # the axes that vary, without the seed
    records: tuple[Record, ...]

    @property
    def label(self) -> str:
        return " · ".join(axis_text(name, value) for name, value in self.axes.items()) or "all trials"

    @property
    def key(self) -> tuple[Any, ...]:
        """Its values on the axes, which no other group shares."""
        return tuple(self.axes.values())

    @property
    def done(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.result is not None)

    def spread(self, metric: str) -> Spread | None:
        """Over its finished trials, of a metric of their best weights; None if none of them has measured it."""
        return spread_of([r.result.metrics[metric] for r in self.done if r.result and metric in r.result.metrics])

    def mean(self, field: str) -> float | None:
        """Mean of a field of Result over the finished trials."""
        values = [float(getattr(record.result, field)) for record in self.done]
        return statistics.fmean(values) if values else None

    def best(self) -> Record | None:
        """Its finished trial of the highest val Dice."""
        return max(self.done, key=lambda r: r.result.metrics["val/dice"] if r.result else 0.0, default=None)


@dataclass(frozen=True)
class Ranked:
    """A group and its rank by mean val Dice; rank 0 = no trial has finished."""

    rank: int
    group: Group
    val_dice: Spread | None


@dataclass(frozen=True)
class Grid:
    """The groups as a table, one per combination of the axes beyond the second."""

    title: str
    row_axis: str
    column_axis: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Group | None, ...]], ...]


def axis_text(name: str, value: Any) -> str:
    """`unet` for a word, `width=8` for what means nothing without its name."""
    return value if isinstance(value, str) else f"{name.rpartition('.')[2]}={'?' if value is None else value}"


def read_records(sweep: Sweep, rows: Sequence[TrialStatus] | None = None) -> list[Record]:
    """All trials of the sweep, also those without a folder. rows: their statuses, if they are already known."""
    return [read_record(row) for row in (observe(sweep).rows if rows is None else rows)]


def read_record(trial_status: TrialStatus, epochs: bool = True) -> Record:
    """One trial; without its epochs it is read much faster, and is enough for a leaderboard."""
    trial = trial_status.trial
    try:
        content = load_config(trial.folder)
        identity, config = flatten(content["identity"]), content["config"]
    except (ValueError, KeyError):
        identity, config = {}, None
    identity.pop("manifest_hash", None)
    rows = [row for row in (trial.metrics() if epochs else ()) if isinstance(row, dict)]
    by_epoch = {int(row["epoch"]): row for row in rows if "epoch" in row}
    try:
        result = trial.result()
    except ValueError as error:  # of one trial of many
        warn_once(f"left out: {error}")
        result = None
    return Record(trial_status, identity | trial.axes, config, result, [row for _, row in sorted(by_epoch.items())])


def spread_of(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, min(values), max(values), len(values))


def varied(sweep: Sweep, records: Sequence[Record]) -> list[str]:
    """The fields in which trials differ, without the seed: the sweep's axes, then other fields.

    Other fields differ after a sweep was run again with another --set; without them, unlike trials would be averaged.
    """
    names = dict.fromkeys([*sweep.axes, *(name for record in records for name in record.values)])
    names.pop(SEED_AXIS, None)
    return [n for n in names if len({record.values[n] for record in records if n in record.values}) > 1]


def gather(axes: Sequence[str], records: Sequence[Record]) -> list[Group]:
    """Groups of the records with equal values on the axes, by first appearance, without trials stopped early."""
    by_key: dict[tuple[Any, ...], list[Record]] = {}
    for record in (record for record in records if not record.is_pruned):
        by_key.setdefault(tuple(record.values.get(name) for name in axes), []).append(record)
    return [Group(dict(zip(axes, key, strict=True)), tuple(members)) for key, members in by_key.items()]


def rank(groups: Sequence[Group]) -> list[Ranked]:
    """The groups by mean val Dice, highest first, and then those without a finished trial."""
    scored = [(spread, group) for group in groups if (spread := group.spread("val/dice"))]
    scored.sort(key=lambda pair: -pair[0].mean)
    ranking = [Ranked(number, group, spread) for number, (spread, group) in enumerate(scored, start=1)]
    return ranking + [Ranked(0, group, None) for group in groups if not group.spread("val/dice")]


def tabulate(axes: Sequence[str], groups: Sequence[Group]) -> list[Grid]:
    """First axis down, second across, and a table per combination of the others (the first MAX_GRIDS of them).

    [] if the tables would be nearly empty, as those of a search, whose trials hardly share a value.
    """
    row_axis, column_axis, *others = [*axes, "", ""][: max(2, len(axes))]
    by_key = {group.key: group for group in groups}
    levels = {name: list(dict.fromkeys(group.axes[name] for group in groups)) for name in axes}
    if len(groups) < LEAST_FILLED * math.prod(map(len, levels.values())):
        return []
    rows, columns = levels.get(row_axis, [None]), levels.get(column_axis, [None])
    grids = []
    for rest in itertools.product(*(levels[name] for name in others)):
        cells = [[by_key.get((row, column, *rest)[: len(axes)]) for column in columns] for row in rows]
        if not axes:
            cells = [[groups[0] if groups else None]]
        if not any(cell for line in cells for cell in line):
            continue
        grids.append(
            Grid(
                title=" · ".join(axis_text(name, value) for name, value in zip(others, rest, strict=True)),
                row_axis=row_axis,
                column_axis=column_axis,
                columns=tuple(axis_text(column_axis, value) if column_axis else "" for value in columns),
                rows=tuple(
                    (axis_text(row_axis, row) if row_axis else "all trials", tuple(line))
                    for row, line in zip(rows, cells, strict=True)
                ),
            )
        )
    return grids[:MAX_GRIDS]
