"""Sample overlays of a sweep, small enough to travel inside the page."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.reporting.sections.drawing import SIZE_PX, webp_uri
from jobs.reporting.statistics.records import Group, Record
from petseg.run_folder.layout import OVERLAYS_NAME, PER_IMAGE_NAME
from shards.command import printable
from shards.files import open_regular

MAX_PIXELS = 4096 * 4096
MAX_ROWS, MAX_COLUMNS = 24, 8  # of 6-9 kB each: below 2.5 MB as base64


@dataclass(frozen=True)
class Overlay:
    uri: str
    dice: float | None


@dataclass(frozen=True)
class OverlayRow:
    """One group's pictures in the order of the sheet's keys, None where its trial has none."""

    group: Group
    record: Record
    pictures: tuple[Overlay | None, ...]


@dataclass(frozen=True)
class Sheet:
    keys: tuple[str, ...]
    rows: tuple[OverlayRow, ...]
    left_out: int  # rows and columns beyond the limits


def lay_out(groups: Sequence[Group]) -> Sheet:
    """The fixed val pictures side by side, a row for the best seed of each group."""
    best = [(group, record) for group in groups if (record := group.best()) and _keys(record)]
    keys = sorted({key for _, record in best for key in _keys(record)})
    shown = tuple(keys[:MAX_COLUMNS])
    rows = []
    for group, record in best[:MAX_ROWS]:
        dice = dice_by_key(record.trial_status.trial.folder)
        pictures = tuple(_picture(record, key, dice.get(key)) for key in shown)
        rows.append(OverlayRow(group, record, pictures))
    return Sheet(shown, tuple(rows), max(0, len(best) - MAX_ROWS) + max(0, len(keys) - MAX_COLUMNS))


def _keys(record: Record) -> list[str]:
    return [printable(path.stem) for path in _folder(record).glob("[!.]*.png")]


def _folder(record: Record) -> Path:
    return record.trial_status.trial.folder / OVERLAYS_NAME


def _picture(record: Record, key: str, dice: float | None) -> Overlay | None:
    try:
        return Overlay(data_uri(_folder(record) / f"{key}.png"), dice)
    except (OSError, ValueError, SyntaxError):  # missing, or not a picture
        return None


def data_uri(path: Path) -> str:
    """A picture, at most SIZE_PX on a side, as a data: URI."""
    from PIL import Image

    with open_regular(path, follow=False) as file, Image.open(file, formats=["PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise OSError(f"{path} has {image.width} x {image.height} pixels")
        small = image.convert("RGB")
    small.thumbnail((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
    return webp_uri(np.asarray(small))


def dice_by_key(folder: Path) -> dict[str, float]:
    """Dice of each val picture; {} if it was not measured."""
    measured = read_dice(folder, "val")
    return dict(zip(measured[0], measured[1].tolist(), strict=True)) if measured else {}


def read_dice(folder: Path, split: str) -> tuple[tuple[str, ...], NDArray[np.float64]] | None:
    """Keys and Dice (N,) of a split's pictures from per_image.npz, in the order of the split; None if it lacks them.

    2 tp / (2 tp + fp + fn), 1 where truth and prediction are empty.
    """
    try:
        with open_regular(folder / PER_IMAGE_NAME, follow=False) as file, np.load(file, allow_pickle=False) as arrays:
            keys, counts = arrays[f"{split}/keys"], arrays[f"{split}/counts"].astype(float)
    except (
        OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, EOFError, zipfile.BadZipFile, zlib.error,
    ):  # fmt: skip
        return None
    if keys.ndim != 1 or not len(keys) or counts.shape != (len(keys), 3) or not (counts >= 0).all():
        return None
    total = 2 * counts[:, 0] + counts[:, 1] + counts[:, 2]
    return _names(keys.tolist()), np.where(total > 0, 2 * counts[:, 0] / np.maximum(total, 1), 1.0)


def _names(keys: Sequence[object]) -> tuple[str, ...]:
    """The keys, made printable; they are checked as one text, since a sweep of 1,000 trials has a million of them."""
    names = tuple(map(str, keys))
    text = "".join(names)
    return names if printable(text) == text else tuple(map(printable, names))
