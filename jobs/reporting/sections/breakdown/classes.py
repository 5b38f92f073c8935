"""Which classes the leading cells find hard, how the first two differ in each, and what the first confuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.reporting.sections.breakdown.confusion import Confusion, build_confusion
from jobs.reporting.sections.breakdown.rows import MAX_CELLS, Row, Scale, mean_of, scale_of
from jobs.reporting.sections.targets import counted_words, target_of
from jobs.reporting.statistics.compare import first_minus_second, summarise
from jobs.reporting.statistics.per_image import PerImage, read_confusion, read_seeds
from jobs.reporting.statistics.records import Group
from jobs.reporting.statistics.units import by_unit
from jobs.reporting.statistics.verdict import Comparison, Difference, Leaderboard, differences_of
from petseg.targets.target import Target
from shards.classes import ClassEntry

LEAST_PICTURES = 2  # or groups of pictures, for a difference with an interval

Floats = NDArray[np.float64]
Units = NDArray[np.int64] | None


@dataclass(frozen=True)
class ClassRow:
    """A class that counts; the pictures are those whose truth shows it."""

    entry: ClassEntry
    share: float | None  # of the pixels of val
    row: Row | None  # None where no picture shows it
    elsewhere: float  # pictures without the class in which the first cell calls it, mean over its seeds
    difference: Difference | None  # the first cell minus the second


@dataclass(frozen=True)
class Classes:
    """The content of the section."""

    target: Target
    cells: tuple[Group, ...]
    rows: tuple[ClassRow, ...]  # the first cell's lowest Dice first; classes that no picture shows last
    not_counted: tuple[tuple[ClassEntry, float | None], ...]  # classes that are in no mean, with their share of pixels
    scale: Scale
    confusion: Confusion | None

    @property
    def counted(self) -> str:
        return counted_words(self.target)


@dataclass(frozen=True)
class _Cell:
    """What the runs of a cell measured."""

    pictures: PerImage  # of one run: the truth is the same in all
    dice: Floats  # (S, N, C)
    elsewhere: Floats  # (C,)


def build_classes(board: Leaderboard) -> Classes | None:
    """The section, for the first cells of the leaderboard that learnt the same classes; None with two classes."""
    val = board.val
    target = target_of(val.groups[0].done[0]) if val else None
    if val is None or target is None or target.is_binary:
        return None
    alike = [group for group in val.groups if target_of(group.done[0]).names == target.names][:MAX_CELLS]
    read = [(group, cell) for group in alike if (cell := _read(group))]
    cells = [(group, cell) for group, cell in read if cell.dice.shape[2] == len(target.counted)]
    if not cells:
        return None
    best = cells[0][0].best()
    confusion = read_confusion(best.trial.folder, "val") if best else None
    if confusion is not None and len(confusion) != len(target):
        confusion = None
    shares = confusion.sum(axis=1) / max(1, confusion.sum()) if confusion is not None else None
    share = {one.value: float(shares[one.value]) if shares is not None else None for one in target.classes}
    rows = _rows(target, val, cells, share)
    rows.sort(key=lambda one: (one.row is None, one.row.means[0].value if one.row else 0.0))
    others = tuple((one, share[one.value]) for one in target.classes if one.value not in target.counted)
    scale = scale_of(one.row for one in rows if one.row)
    drawn = build_confusion(target, confusion) if confusion is not None else None
    return Classes(target, tuple(group for group, _ in cells), tuple(rows), others, scale, drawn)


def _read(group: Group) -> _Cell | None:
    runs = read_seeds(group, "val")
    if not runs or len({one.counts.shape for one in runs}) != 1:
        return None
    elsewhere = np.mean([(one.called & ~one.truth).sum(axis=0) for one in runs], axis=0)
    return _Cell(runs[0], np.stack([one.class_dice for one in runs]), elsewhere)


def _rows(
    target: Target, val: Comparison, cells: Sequence[tuple[Group, _Cell]], share: dict[int, float | None]
) -> list[ClassRow]:
    first = cells[0][1]
    differences = _differences(val.units, cells[:2]) if len(cells) > 1 else {}
    rows = []
    for number, value in enumerate(target.counted):
        entry, shown = target.classes[value], first.pictures.truth[:, number]
        row = None
        if shown.any():
            units = None if val.units is None else val.units[shown]
            means = tuple(mean_of(cell.dice[:, shown, number].mean(axis=0), units) for _, cell in cells)
            row = Row(entry.name, int(shown.sum()), means)
        rows.append(ClassRow(entry, share[value], row, float(first.elsewhere[number]), differences.get(number)))
    return rows


def _differences(units: Units, cells: Sequence[tuple[Group, _Cell]]) -> dict[int, Difference]:
    """The differences by number of the class, on the same pictures of both cells; all classes are one family."""
    (one, first), (other, second) = cells
    compared = {}
    for number in range(first.dice.shape[2]):
        shown = first.pictures.truth[:, number]
        own = None if units is None else units[shown]
        if shown.any():
            runs = [by_unit(cell.dice[:, shown, number], own) for cell in (first, second)]
            if runs[0].shape[1] >= LEAST_PICTURES:
                compared[number] = summarise(runs)
    if not compared:
        return {}
    differences = differences_of((one.label, other.label), first_minus_second(list(compared.values())))
    return dict(zip(compared, differences, strict=True))
