"""The confusion of classes: of the pixels of each true class, the share that is called each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from petseg.targets.target import Target
from shards.classes import ClassEntry

MAX_CLASSES = 40  # in the table: more of them are left to the list of pairs
MAX_PAIRS = 12
FULL_DEPTH = 60  # per cent of full colour: the numbers stay readable
LEAST_SHARE = 0.005  # that is written into the table, which has whole per cent


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    share: float  # of the true class's pixels
    is_right: bool

    @property
    def depth(self) -> int:
        """Per cent of full colour; errors by the square root, so that small ones show."""
        return round(FULL_DEPTH * (self.share if self.is_right else self.share**0.5))

    @property
    def text(self) -> str:
        return f"{100 * self.share:.0f}" if self.share >= LEAST_SHARE else ""


@dataclass(frozen=True)
class Pair:
    """A class that is taken for another."""

    truth: ClassEntry
    called: ClassEntry
    share: float  # of the true class's pixels
    of_all: float  # of all pixels that count


@dataclass(frozen=True)
class Confusion:
    """The table of the classes that val shows or that are called, in the order of their values; and the worst pairs."""

    classes: tuple[ClassEntry, ...]
    rows: tuple[tuple[ClassEntry, tuple[Cell, ...]], ...]  # of the classes in the truth
    left_out: int  # classes beyond MAX_CLASSES, those with the fewest pixels
    pairs: tuple[Pair, ...]  # by share of all pixels, largest first


def build_confusion(target: Target, pixels: NDArray[np.int64]) -> Confusion | None:
    """pixels: (K, K) by true class (rows) and predicted class. None where no pixel counts."""
    truth = pixels.sum(axis=1)
    total = int(truth.sum())
    if not total:
        return None
    seen = np.flatnonzero(truth + pixels.sum(axis=0))
    kept = sorted(seen[np.argsort(-truth[seen], kind="stable")][:MAX_CLASSES].tolist())
    shares = pixels / np.maximum(truth, 1)[:, None]
    rows = tuple(
        (target.classes[one], tuple(Cell(float(shares[one, other]), one == other) for other in kept))
        for one in kept
        if truth[one]
    )
    wrong = pixels * (1 - np.eye(len(pixels), dtype=np.int64))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [
        Pair(target.classes[one], target.classes[other], float(shares[one, other]), float(wrong[one, other] / total))
        for one, other in zip(*np.unravel_index(worst, wrong.shape), strict=True)
        if wrong[one, other]
    ]
    return Confusion(tuple(target.classes[one] for one in kept), rows, len(seen) - len(kept), tuple(pairs))
