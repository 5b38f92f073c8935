"""The worst val pictures of the hardest classes, one class at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.reporting.sections.drawing import draw_errors, webp_uri
from jobs.reporting.sections.gallery import Kept
from jobs.reporting.sections.samples import ValSplit, load_samples
from jobs.reporting.statistics.per_image import PerImage, read_per_image
from jobs.runs.trial import Sweep
from shards.classes import ClassEntry

MAX_CLASSES, EACH = 5, 6


@dataclass(frozen=True)
class ClassShot:
    """A picture with what is right, missed and wrongly called of one class."""

    key: str
    dice: float  # of the class
    errors: str  # data: URI


@dataclass(frozen=True)
class ClassShots:
    entry: ClassEntry
    shots: tuple[ClassShot, ...]  # the lowest Dice first


def show_hardest(cell: Kept | None, sweep: Sweep, shards: str) -> tuple[ClassShots, ...]:
    """The rows of the classes of lowest mean Dice over the pictures that show them; () where nothing can be drawn."""
    if cell is None or cell.masks is None or cell.target.is_binary:
        return ()
    pictures = read_per_image(cell.record.trial.folder, "val")
    if pictures is None or pictures.keys != cell.keys or pictures.counts.shape[1] != len(cell.target.counted):
        return ()
    worst = _worst(pictures)
    positions = sorted({position for row in worst.values() for position in row})
    where = ValSplit(cell.record, sweep.hash_of(cell.record.trial), shards)
    samples, _ = load_samples(where, {position: cell.keys[position] for position in positions})
    if not samples:
        return ()
    rows = []
    for number, row in worst.items():
        entry = cell.target.classes[cell.target.counted[number]]
        shots = []
        for position in row:
            sample = samples[position]
            mask = (cell.masks.of(position) == entry.value) & sample.counted
            errors = webp_uri(draw_errors(sample.image, sample.classes == entry.value, mask))
            shots.append(ClassShot(cell.keys[position], float(pictures.class_dice[position, number]), errors))
        rows.append(ClassShots(entry, tuple(shots)))
    return tuple(rows)


def _worst(pictures: PerImage) -> dict[int, list[int]]:
    """Positions of the lowest Dice by number of the class, the hardest classes first."""
    dice = np.where(pictures.truth, pictures.class_dice, np.nan)
    shown = np.flatnonzero(pictures.truth.any(axis=0))
    means = np.nanmean(dice[:, shown], axis=0)
    hardest = shown[np.argsort(means, kind="stable")][:MAX_CLASSES]
    worst = {}
    for number in hardest.tolist():
        positions = np.flatnonzero(pictures.truth[:, number])
        worst[number] = positions[np.argsort(dice[positions, number], kind="stable")][:EACH].tolist()
    return worst
