"""The effect of the axes on val Dice: the share of the spread that each explains alone, and every trial as a line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reporting.statistics.records import Group, Record

MAX_LEVELS = 8  # numbers with a tick each; more of them are a scale
PARTS = 4  # into which a scale is cut for its share
LEAST_CELLS = 4
LOG_FROM = 30.0  # a scale whose ends are so many times apart is drawn by its logarithm
COLUMN_PX, HEIGHT, TOP, BOTTOM, SIDE = 150, 330.0, 14.0, 300.0, 70
MAX_TICKS = 12
SPREAD = 0.7  # of a level's room that its lines take, by their Dice


@dataclass(frozen=True)
class Importance:
    """eta squared: the sum of squares between the means of an axis's values, of that between all cells."""

    axis: str
    levels: int
    is_cut: bool  # a scale, cut into PARTS of about as many cells each
    share: float
    by_chance: float  # what an axis of as many values that does nothing gives on average


@dataclass(frozen=True)
class Column:
    """An axis of the drawing, or val Dice."""

    name: str
    x: int
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Path:
    """A trial."""

    points: str  # of a polyline
    depth: int  # per cent of full colour, by its rank
    dice: float
    words: str
    is_pruned: bool


@dataclass(frozen=True)
class Parallel:
    columns: tuple[Column, ...]
    paths: tuple[Path, ...]  # the highest last, on top
    width: int
    low: float
    high: float


@dataclass(frozen=True)
class AxesSection:
    cells: int  # finished
    importances: tuple[Importance, ...]
    parallel: Parallel | None


def weigh_axes(axes: Sequence[str], groups: Sequence[Group], records: Sequence[Record]) -> AxesSection:
    """The section. records: all, also of trials stopped early, which are in no group."""
    finished = [group for group in groups if group.spread("val/dice")]
    return AxesSection(len(finished), importances(axes, groups), draw_parallel(axes, records) if axes else None)


def importances(axes: Sequence[str], groups: Sequence[Group]) -> tuple[Importance, ...]:
    """The importance of each axis alone, the largest first; () if too few cells are finished.

    An axis with a different value in each cell would explain everything, and is left out.
    """
    cells = [(group, spread.mean) for group in groups if (spread := group.spread("val/dice"))]
    means = [mean for _, mean in cells]
    if len(axes) < 2 or len(cells) < LEAST_CELLS or max(means) == min(means):
        return ()
    shares = []
    for axis in axes:
        values = [group.axes[axis] for group, _ in cells]
        is_cut = is_scale(values)
        levels = cut(values) if is_cut else values
        count = len(set(levels))
        if 1 < count < len(cells):
            by_chance = (count - 1) / (len(cells) - 1)
            shares.append(Importance(axis, count, is_cut, eta_squared(levels, means), by_chance))
    return tuple(sorted(shares, key=lambda one: -one.share))


def eta_squared(levels: Sequence[Any], values: Sequence[float]) -> float:
    """Sum of squares between levels over the total sum of squares (Cohen 1973, Educ Psychol Meas 33:107)."""
    mean = statistics.fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    by_level: dict[Any, list[float]] = {}
    for level, value in zip(levels, values, strict=True):
        by_level.setdefault(level, []).append(value)
    between = sum(len(own) * (statistics.fmean(own) - mean) ** 2 for own in by_level.values())
    return between / total if total else 0.0


def is_scale(values: Sequence[Any]) -> bool:
    """True for numbers that are too many for a tick each."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    return numbers and len(set(values)) > MAX_LEVELS


def cut(values: Sequence[float]) -> list[int]:
    """The quantile bin (of PARTS) of each value; equal values share a bin."""
    ordered = sorted(values)
    return [min(PARTS - 1, ordered.index(value) * PARTS // len(values)) for value in values]


def draw_parallel(axes: Sequence[str], records: Sequence[Record]) -> Parallel | None:
    """A line through the values of each trial on the axes to its val Dice; None with fewer than two trials."""
    scored = [(record, dice) for record in records if (dice := dice_of(record)) is not None]
    if len(scored) < 2:
        return None
    low, high = min(dice for _, dice in scored), max(dice for _, dice in scored)
    span = high - low or 1.0
    columns, heights = [], []
    for number, axis in enumerate(axes):
        values: list[Any] = [record.values.get(axis) for record, _ in scored]
        ticks, ys = _scale(values) if is_scale(values) else _levels(values, [(dice - low) / span for _, dice in scored])
        columns.append(Column(axis, SIDE + number * COLUMN_PX, ticks))
        heights.append(ys)
    ends = [low + i * span / 4 for i in range(5)]
    columns.append(
        Column("val Dice", SIDE + len(axes) * COLUMN_PX, tuple((_y((v - low) / span), f"{v:.3f}") for v in ends))
    )
    heights.append([_y((dice - low) / span) for _, dice in scored])
    # coloured by rank: one trial that learnt nothing would make all others look alike
    ranks = {dice: i for i, dice in enumerate(sorted({dice for _, dice in scored}))}
    paths = []
    for i, (record, dice) in enumerate(scored):
        points = " ".join(f"{column.x},{ys[i]:.1f}" for column, ys in zip(columns, heights, strict=True))
        words = f"{record.trial.label}: {dice:.4f}{' when stopped early' if record.is_pruned else ''}"
        depth = round(100 * ranks[dice] / max(1, len(ranks) - 1))
        paths.append(Path(points, depth, dice, words, record.is_pruned))
    paths.sort(key=lambda path: path.dice)
    return Parallel(tuple(columns), tuple(paths), 2 * SIDE + len(axes) * COLUMN_PX, low, high)


def dice_of(record: Record) -> float | None:
    """The val Dice of the best weights, or the best before a trial was stopped early."""
    if record.result:
        return record.result.metrics["val/dice"]
    return record.trial_status.dice if record.is_pruned else None


def _levels(values: Sequence[Any], dice: Sequence[float]) -> tuple[tuple[tuple[float, str], ...], list[float]]:
    """Ticks and the height of each value: a band per level, numbers in order, within it by Dice."""
    numbers = all(isinstance(value, int | float) for value in values)
    levels = sorted(set(values)) if numbers else list(dict.fromkeys(values))
    shares = {level: (i + 0.5) / len(levels) for i, level in enumerate(levels)}
    if not numbers:
        shares = {level: 1 - share for level, share in shares.items()}  # words are read from the top
    ys = [_y(shares[v] + SPREAD * (d - 0.5) / len(levels)) for v, d in zip(values, dice, strict=True)]
    every = math.ceil(len(levels) / MAX_TICKS)
    ticks = ((_y(shares[level]), "?" if level is None else str(level)) for level in levels[::every])
    return tuple(ticks), ys


def _scale(values: Sequence[float]) -> tuple[tuple[tuple[float, str], ...], list[float]]:
    low, high = min(values), max(values)
    by_logarithm = low > 0 and high / low >= LOG_FROM
    bend = math.log if by_logarithm else float
    first, last = bend(low), bend(high)
    marks = [first + i * (last - first) / 4 for i in range(5)]
    ticks = tuple((_y(i / 4), f"{math.exp(m) if by_logarithm else m:.3g}") for i, m in enumerate(marks))
    return ticks, [_y((bend(value) - first) / (last - first)) for value in values]


def _y(share: float) -> float:
    """Pixels from the top; share 0 is below, 1 above."""
    return round(BOTTOM - share * (BOTTOM - TOP), 1)
