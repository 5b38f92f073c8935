"""Sample overlays of a sweep, small enough to travel inside the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.reporting.sections.drawing import SIZE_PX, webp_uri
from jobs.reporting.statistics.per_image import read_dice
from jobs.reporting.statistics.records import Group, Record
from petseg.run_folder.layout import OVERLAYS_NAME
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
        dice = dice_by_key(record.trial.folder)
        pictures = tuple(_picture(record, key, dice.get(key)) for key in shown)
        rows.append(OverlayRow(group, record, pictures))
    return Sheet(shown, tuple(rows), max(0, len(best) - MAX_ROWS) + max(0, len(keys) - MAX_COLUMNS))


def _keys(record: Record) -> list[str]:
    return [printable(path.stem) for path in _folder(record).glob("[!.]*.png")]


def _folder(record: Record) -> Path:
    return record.trial.folder / OVERLAYS_NAME


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
