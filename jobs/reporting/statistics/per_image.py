"""What a finished run measured on each picture of a split, from per_image.npz of its folder."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.reporting.statistics.records import Group
from petseg.run_folder.layout import PER_IMAGE_NAME
from shards.command import printable
from shards.files import open_regular

DAMAGED = (
    OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, EOFError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PerImage:
    """The pictures of a split, in its order."""

    keys: tuple[str, ...]
    counts: Floats  # (N, C, 3) true positives, false positives, false negatives of each class that counts
    groups: tuple[str, ...] = ()  # of the pictures, such as videos; () in a set that was packed without --group-by

    @property
    def class_dice(self) -> Floats:
        """(N, C) 2 tp / (2 tp + fp + fn), 1 where truth and prediction are empty."""
        total = 2 * self.counts[..., 0] + self.counts[..., 1] + self.counts[..., 2]
        return np.where(total > 0, 2 * self.counts[..., 0] / np.maximum(total, 1), 1.0)

    @property
    def dice(self) -> Floats:
        """(N,) mean over the classes in truth or prediction, 1 without any; as petseg.metrics.pixels, without torch."""
        if self.counts.shape[1] == 1:
            return self.class_dice[:, 0]
        present = self.counts.sum(axis=-1) > 0
        number = present.sum(axis=1)
        return np.where(number > 0, (self.class_dice * present).sum(axis=1) / np.maximum(number, 1), 1.0)

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(N, C) whether a picture's truth shows the class."""
        return (self.counts[..., 0] + self.counts[..., 2]) > 0

    @property
    def called(self) -> NDArray[np.bool_]:
        """(N, C) whether a picture's prediction has the class."""
        return (self.counts[..., 0] + self.counts[..., 1]) > 0


def read_per_image(folder: Path, split: str) -> PerImage | None:
    """The pictures of a split; None if the run has not measured them, or if the file is damaged."""
    try:
        with _arrays(folder) as arrays:
            keys, counts = arrays[f"{split}/keys"], arrays[f"{split}/counts"].astype(float)
            groups = arrays[f"{split}/groups"].tolist() if f"{split}/groups" in arrays else []
    except DAMAGED:
        return None
    if counts.ndim == 2:  # one class
        counts = counts[:, None]
    of_pictures = keys.ndim == 1 and counts.ndim == 3 and len(keys) == len(counts)
    if not of_pictures or not counts.size or counts.shape[2] != 3 or not (counts >= 0).all():
        return None
    names = _names(groups) if len(groups) == len(keys) else ()
    return PerImage(_names(keys.tolist()), counts, names)


def read_seeds(group: Group, split: str) -> list[PerImage]:
    """The pictures of a split as each finished trial of a group measured them, without trials that have not."""
    return [one for record in group.done if (one := read_per_image(record.trial.folder, split))]


def read_dice(folder: Path, split: str) -> tuple[tuple[str, ...], Floats] | None:
    """Keys and Dice (N,) of a split's pictures, in the order of the split; None as `read_per_image`."""
    measured = read_per_image(folder, split)
    return (measured.keys, measured.dice) if measured else None


def read_confusion(folder: Path, split: str) -> NDArray[np.int64] | None:
    """(K, K) pixels by true class (rows) and predicted class; None with two classes, and as `read_per_image`."""
    try:
        with _arrays(folder) as arrays:
            confusion: NDArray[np.int64] = arrays[f"{split}/confusion"].astype(np.int64)
    except DAMAGED:
        return None
    is_square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1]
    return confusion if is_square and (confusion >= 0).all() else None


@contextmanager
def _arrays(folder: Path) -> Iterator[Any]:
    with open_regular(folder / PER_IMAGE_NAME, follow=False) as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


def _names(keys: Sequence[object]) -> tuple[str, ...]:
    """The keys, made printable; they are checked as one text, since a sweep of 1,000 trials has a million of them."""
    names = tuple(map(str, keys))
    text = "".join(names)
    return names if printable(text) == text else tuple(map(printable, names))
