"""The best, median and worst val pictures of the best cell, and those on which two models disagree most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.reporting.sections.drawing import draw_classes, draw_errors, draw_outlines, webp_uri
from jobs.reporting.sections.samples import Mask, Sample, ValSplit, load_samples
from jobs.reporting.sections.targets import target_of
from jobs.reporting.statistics.per_image import read_dice
from jobs.reporting.statistics.records import Group, Ranked, Record
from jobs.runs.trial import Sweep
from petseg.metrics.masks import Classes, Masks, load_masks
from petseg.run_folder.layout import VAL_MASKS_NAME
from petseg.targets.target import LABELS, Target
from shards.classes import Colour

EACH = 4  # best, median and worst pictures
MAX_DISPUTED = 6
MAX_TRIES = 8  # cells whose masks are read to find one that can be laid beside the best
ARCH_AXES = ("model.arch", "model.encoder")  # two architectures are laid side by side, where the sweep has two


@dataclass(frozen=True)
class Prediction:
    """One model's mask of one picture; errors is "" if the mask or the picture is missing."""

    dice: float
    errors: str = ""  # data: URI of the error map
    missed: float = 0.0  # shares of the picture's pixels; with more than two classes, missed is 0
    wrong: float = 0.0


@dataclass(frozen=True)
class Shot:
    """A picture of the best cell."""

    key: str
    photo: str  # data: URI with the predicted and the true outline, or ""
    prediction: Prediction
    has_wanted: bool = True  # False where, of two classes, its mask is known to have the first alone


@dataclass(frozen=True)
class Disputed:
    """A picture that two models see differently."""

    key: str
    agreement: float  # Dice between their two masks, the mean over the classes that count
    photo: str  # data: URI with the true outline, or ""
    predictions: tuple[Prediction, Prediction]


@dataclass(frozen=True)
class Kept:
    """The best seed of a cell, with what its folder holds of val."""

    group: Group
    record: Record
    keys: tuple[str, ...]
    dice: NDArray[np.float64]  # (N,)
    masks: Masks | None
    target: Target

    @property
    def colours(self) -> tuple[Colour, ...]:
        return tuple(one.colour for one in self.target.classes)


@dataclass(frozen=True)
class Gallery:
    """The content of the section."""

    cell: Kept
    is_first: bool  # of the leaderboard
    rows: tuple[tuple[str, tuple[Shot, ...]], ...]  # best, median, worst
    other: Kept | None  # the cell that it is compared with
    disputed: tuple[Disputed, ...]
    trouble: str  # why pictures are missing, "" if they are not

    @property
    def wanted(self) -> str:
        """The name of the second of two classes; "" with more."""
        return self.cell.target.names[1] if self.cell.target.is_binary else ""


def build_gallery(ranking: Sequence[Ranked], sweep: Sweep, shards: str = "") -> Gallery | None:
    """The gallery of the first cell that kept its masks, or else of the first measured cell; None without one."""
    finished = [(ranked.group, record) for ranked in ranking if (record := ranked.group.best())]
    with_masks = [pair for pair in finished if (pair[1].trial.folder / VAL_MASKS_NAME).is_file()]
    cell = next((kept for kept in _kept(with_masks[:MAX_TRIES]) if kept.masks), None) or next(_kept(finished), None)
    if cell is None:
        return None
    other = rival(cell, with_masks)
    disputed = dispute(cell, other) if other else []
    chosen = pick(cell.dice)
    samples: dict[int, Sample] = {}
    trouble = "none of the finished runs kept its masks"
    if cell.masks:
        positions = sorted({i for _, row in chosen for i in row} | {i for i, _ in disputed})
        wanted = {i: cell.keys[i] for i in positions}
        where = ValSplit(cell.record, sweep.hash_of(cell.record.trial), shards)
        samples, trouble = load_samples(where, wanted)
    rows = tuple((name, tuple(_shot(cell, i, samples.get(i)) for i in row)) for name, row in chosen)
    pictures = tuple(_disputed(cell, other, i, agreement, samples.get(i)) for i, agreement in disputed if other)
    return Gallery(cell, cell.record is finished[0][1], rows, other, pictures, trouble)


def _kept(cells: Iterable[tuple[Group, Record]]) -> Iterator[Kept]:
    for group, record in cells:
        folder = record.trial.folder
        if measured := read_dice(folder, "val"):
            masks = load_masks(folder)
            own = masks if masks and masks.keys == measured[0] else None
            yield Kept(group, record, *measured, own, target_of(record))


def rival(cell: Kept, cells: Sequence[tuple[Group, Record]]) -> Kept | None:
    """The first cell of another architecture, else the first other one, with masks of the same pictures and size."""
    if cell.masks is None:
        return None
    others = [pair for pair in cells if pair[1] is not cell.record]
    others.sort(key=lambda pair: _arch(pair[1]) == _arch(cell.record))
    shape = cell.masks.stored.shape, cell.masks.width_px
    for kept in _kept(others[:MAX_TRIES]):
        alike = kept.target.names == cell.target.names and kept.keys == cell.keys
        if kept.masks and alike and (kept.masks.stored.shape, kept.masks.width_px) == shape:
            return kept
    return None


def _arch(record: Record) -> list[object]:
    return [record.values.get(name) for name in ARCH_AXES]


def dispute(one: Kept, other: Kept) -> list[tuple[int, float]]:
    """(position, Dice between the two masks) of the pictures on which they differ most, if they differ at all."""
    assert one.masks
    assert other.masks
    between = np.array(
        [agreement(one.masks.of(i), other.masks.of(i), one.target.counted) for i in range(len(one.keys))]
    )
    order = np.argsort(between, kind="stable")[:MAX_DISPUTED]
    return [(int(i), float(between[i])) for i in order if between[i] < 1]


def agreement(one: Classes, other: Classes, counted: Sequence[int]) -> float:
    """Mean Dice between two masks of classes, over the classes that count and that are in either; 1 without any."""
    if len(counted) == 1:
        return dice_between(one == counted[0], other == counted[0])
    pairs = np.bincount(one.ravel().astype(np.intp) * LABELS + other.ravel(), minlength=LABELS**2)
    table = pairs.reshape(LABELS, LABELS)
    both, total = table.diagonal()[list(counted)], (table.sum(axis=0) + table.sum(axis=1))[list(counted)]
    return float((2 * both[total > 0] / total[total > 0]).mean()) if total.any() else 1.0


def dice_between(one: Mask, other: Mask) -> float:
    """2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def pick(dice: NDArray[np.float64]) -> list[tuple[str, list[int]]]:
    """Positions of the best, median and worst pictures, by Dice; none twice, so fewer of each where there are few."""
    order = np.argsort(-dice, kind="stable").tolist()
    count = min(EACH, -(-len(order) // 3))
    best, rest = order[:count], order[count:]
    worst, rest = rest[-count:], rest[:-count]
    start = max(0, len(rest) - count) // 2
    rows = (("Best", best), ("Median", rest[start : start + count]), ("Worst", worst))
    return [(name, row) for name, row in rows if row]


def _shot(cell: Kept, position: int, sample: Sample | None) -> Shot:
    prediction = _prediction(cell, position, sample)
    if sample is None or cell.masks is None:
        return Shot(cell.keys[position], "", prediction)
    if not cell.target.is_binary:
        return Shot(cell.keys[position], _drawn_truth(cell, sample), prediction)
    photo = webp_uri(draw_outlines(sample.image, sample.truth, cell.masks.of(position) == 1))
    return Shot(cell.keys[position], photo, prediction, bool(sample.truth.any()))


def _disputed(one: Kept, other: Kept, position: int, agreement: float, sample: Sample | None) -> Disputed:
    photo = _drawn_truth(one, sample) if sample else ""
    predictions = _prediction(one, position, sample), _prediction(other, position, sample)
    return Disputed(one.keys[position], agreement, photo, predictions)


def _drawn_truth(cell: Kept, sample: Sample) -> str:
    """The picture with its true outline or, with more than two classes, in the colours of the true ones."""
    if cell.target.is_binary:
        return webp_uri(draw_outlines(sample.image, sample.truth))
    return webp_uri(draw_classes(sample.image, sample.classes, sample.classes, cell.colours))


def _prediction(cell: Kept, position: int, sample: Sample | None) -> Prediction:
    dice = float(cell.dice[position])
    if sample is None or cell.masks is None:
        return Prediction(dice)
    predicted = cell.masks.of(position)
    if not cell.target.is_binary:
        errors = webp_uri(draw_classes(sample.image, sample.classes, predicted, cell.colours))
        return Prediction(dice, errors, wrong=float(((predicted != sample.classes) & sample.counted).mean()))
    mask = (predicted == 1) & sample.counted
    errors = webp_uri(draw_errors(sample.image, sample.truth, mask))
    missed, wrong = float((sample.truth & ~mask).mean()), float((mask & ~sample.truth).mean())
    return Prediction(dice, errors, missed, wrong)
