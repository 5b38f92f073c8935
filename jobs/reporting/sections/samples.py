"""The val pictures of a sweep's shard set, out of a folder that the user names: without torch, and nothing is fetched.

Where the trials read their shards is in their configs, and those could be a stranger's: a report opens no such place.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jobs.reporting.statistics.records import Record
from petseg.config.sizes import size_of
from petseg.data.decode import decode_labels
from petseg.data.letterbox import PAD_RGB, centred, place
from petseg.data.store import LocalStore, is_remote
from petseg.data.tars import UNREADABLE, TarReader
from petseg.targets import TARGET_NAME
from petseg.targets.target import implied_target, load_target
from shards.classes import IGNORE_VALUE
from shards.command import without_secrets

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Found = TypeVar("Found")

MAX_SIDE_PX = 4096


@dataclass(frozen=True)
class ValSplit:
    """The val split that a trial was measured on, and the folder to read it from."""

    record: Record
    manifest_hash: str
    shards: str = ""  # the folder to look in; "" = nowhere


@dataclass(frozen=True)
class Sample:
    """A val picture as the network saw it."""

    image: Pixels  # (H, W, 3) uint8
    classes: Pixels  # (H, W) uint8 true classes, by the target that the run was trained on; IGNORE_VALUE: not counted

    @property
    def truth(self) -> Mask:
        """(H, W) the second of two classes."""
        return self.classes == 1

    @property
    def counted(self) -> Mask:
        """(H, W) False where the target ignores a pixel."""
        return self.classes != IGNORE_VALUE


def load_samples(where: ValSplit, wanted: Mapping[int, str]) -> tuple[dict[int, Sample], str]:
    """(samples by position, "") for {position in val: key}, or ({}, why they cannot be read)."""
    samples, trouble = _read(where, wanted, lambda reader, position: _sample(reader, position, where.record))
    return dict(zip(wanted, samples, strict=False)), trouble


def load_facts(where: ValSplit, keys: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """(the content of KEY.json of each val picture, {} without one, "") or ([], why it cannot be read)."""
    return _read(where, dict(enumerate(keys)), TarReader.facts)


def _read(
    where: ValSplit, wanted: Mapping[int, str], read: Callable[[TarReader, int], Found]
) -> tuple[list[Found], str]:
    """(the result of `read` for each position, "") or ([], why it cannot be read). wanted: {position in val: key}"""
    try:
        reader = _open(where)
        try:
            for position, key in wanted.items():
                if position >= len(reader) or reader.key(position) != key:
                    raise ValueError(f"its val split has another order: {key} is not at place {position}")
            return [read(reader, position) for position in wanted], ""
        finally:
            reader.close()
    except UNREADABLE as error:
        return [], str(error)


def _open(where: ValSplit) -> TarReader:
    """Open the val split; raises ValueError, OSError or Failure if it cannot be read."""
    try:
        data = (where.record.config or {})["data"]
        size, fit = size_of(data["image_size_px"]), data.get("fit", "squash")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise ValueError(f"trial {where.record.id} has no readable config.json") from None
    if not all(0 < side <= MAX_SIDE_PX for side in size):
        raise ValueError(f"trial {where.record.id} has pictures of {size[0]} x {size[1]} px, which are not drawn")
    if not where.shards:
        raise ValueError("a report opens no shards by itself: name their folder by --shards")
    if is_remote(where.shards):
        raise ValueError(f"the shards lie at {without_secrets(where.shards)}, from where a report fetches nothing")
    store = LocalStore(where.shards)
    if store.manifest.hash != where.manifest_hash:
        raise ValueError(f"{where.shards} holds another shard set than the sweep's")
    return TarReader(store, "val", size, fit)


def _sample(reader: TarReader, position: int, record: Record) -> Sample:
    """Decode the labels exactly as in the evaluation, and the picture only for display."""
    size, letterbox = reader.size_px, reader.fit == "letterbox"
    jpg, png = reader.encoded(position)
    try:
        image = Image.open(io.BytesIO(jpg), formats=["JPEG"])
    except UnidentifiedImageError:  # its message shows the object that held the bytes
        raise ValueError(f"{reader.key(position)}.jpg is no readable JPEG") from None
    with image:
        at = place((image.height, image.width), size) if letterbox else centred(size, size)
        image.draft("RGB", (at.width, at.height))
        shown = np.empty((*size, 3), np.uint8)
        shown[...] = PAD_RGB
        scaled = image.convert("RGB").resize((at.width, at.height), Image.Resampling.BILINEAR)
        shown[at.rows_columns()] = np.asarray(scaled)
    labels = np.empty(size, np.uint8)
    decode_labels(png, labels, letterbox)
    return Sample(shown, _table(record, reader, reader.key(position))[labels])


def _table(record: Record, reader: TarReader, key: str) -> Pixels:
    """(256,) the class of each label, as the run was trained; raises ValueError if its folder does not say it.

    The file that a config may name by `data.target` is not read: the config could be a stranger's.
    """
    manifest, folder = reader.store.manifest, record.trial.folder
    target = load_target(folder)
    if target is not None:
        if dict(target.labels) != manifest.mask_values:
            raise ValueError(f"{folder / TARGET_NAME} was made for other labels than those of the shard set")
        return target.table[target.rows_of([key])[0]]
    if manifest.classes is not None:
        raise ValueError(f"{folder} has no {TARGET_NAME}, which says what the run learnt")
    rule = str(((record.config or {}).get("data") or {}).get("border"))
    try:
        return implied_target(manifest.source.values, rule).table[0]
    except ValueError:
        raise ValueError(f"trial {record.id} has no readable config.json") from None
