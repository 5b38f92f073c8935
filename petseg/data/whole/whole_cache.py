"""Caches of samples decoded at their own sizes: memory-mapped files that all processes of a node share.

A file is named by the shard set's hash and the split, and begins with a table (N, 4) int64 of each sample's
offset, height, width and key hash; at its offset lie the picture (h, w, 3) and the labels (h, w) uint8.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from petseg.config.sizes import Size
from petseg.data.decode import picture_size
from petseg.data.local_cache import cache_folder, locked, make_room, touch
from petseg.data.tars import UNREADABLE, Lost, TarReader, Whole
from shards.files import named

LAYOUT_VERSION = 1  # raised when decoding gives other pixels than before
COLUMNS = 4  # of the table
SURVEYED, SURVEYED_SHARDS = 64, 4  # pictures whose sizes tell how large a split is, and the shards that they are in
BYTES_PER_PIXEL = 4

logger = logging.getLogger(__name__)


class WholeCache:
    """The decoded samples of one split at their own sizes, in a file that the kernel keeps in memory once."""

    def __init__(self, path: Path, tars: TarReader) -> None:
        self._table = _table(path, len(tars))
        self._bytes = np.memmap(path, np.uint8, "r")

    def whole(self, position: int) -> Whole:
        """Views of a sample."""
        offset, height, width, key_hash = self._table[position].tolist()
        pixels = height * width
        image = self._bytes[offset : offset + 3 * pixels].reshape(height, width, 3)
        labels = self._bytes[offset + 3 * pixels : offset + 4 * pixels].reshape(height, width)
        return Whole(image, labels, key_hash % 2**64)


def open_whole_cache(tars: TarReader, cache_dir: str, cache_gb: float) -> WholeCache | None:
    """The cache of a split, built if it does not exist; None if samples of the split cannot be read.

    Raises ValueError if the cache folder has no room.
    """
    folder = cache_folder(cache_dir)
    path = folder / "decoded" / f"{tars.store.manifest.hash[:16]}-{tars.split}-whole-v{LAYOUT_VERSION}.u8"
    path.parent.mkdir(exist_ok=True)
    if not _is_built(path, tars):
        with locked(path):
            if not _is_built(path, tars):
                make_room(folder, whole_bytes(tars), cache_gb)
                if not _build(path, tars):
                    return None
    touch(path)
    return WholeCache(path, tars)


def whole_bytes(tars: TarReader) -> int:
    """About as many bytes as the split takes once it is decoded, by the sizes of some of its pictures."""
    pixels = [height * width for height, width in surveyed_sizes(tars)]
    mean = float(np.mean(pixels)) if pixels else 0.0
    return int(len(tars) * (mean * BYTES_PER_PIXEL + 8 * COLUMNS))


def surveyed_sizes(tars: TarReader) -> list[Size]:
    """The sizes of some pictures of a split, evenly spread over a few of its shards: the manifest lists none."""
    ends = np.cumsum(tars.shard_sizes)
    some = np.unique(np.linspace(0, len(ends) - 1, SURVEYED_SHARDS).astype(int))
    sizes = []
    for number in some.tolist():
        first, count = int(ends[number] - tars.shard_sizes[number]), int(tars.shard_sizes[number])
        for row in np.unique(np.linspace(0, count - 1, SURVEYED // SURVEYED_SHARDS).astype(int)).tolist():
            try:
                sizes.append(picture_size(tars.encoded(first + row)[0]))
            except UNREADABLE:  # reported where it is read
                continue
    return sizes


def _is_built(path: Path, tars: TarReader) -> bool:
    """Whether the file is there, as long as its table says."""
    if not path.exists() or path.stat().st_size < len(tars) * COLUMNS * 8:
        return False
    offset, height, width, _ = _table(path, len(tars)).T
    end = int((offset + height * width * BYTES_PER_PIXEL).max(initial=0))
    return path.stat().st_size == end


def _table(path: Path, num_samples: int) -> np.memmap:
    return np.memmap(path, np.int64, "r", 0, (num_samples, COLUMNS))


def _build(path: Path, tars: TarReader) -> bool:
    """Decode the split into a file aside, fsync, rename; False, without a file, if a sample cannot be read."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with aside.open("wb") as file:
            lost = _write_all(file.fileno(), tars, path)
            os.fsync(file.fileno())
        if lost:
            logger.warning("%s is not cached: %d samples cannot be read, such as %s", tars.split, len(lost), lost[0])
            return False
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _write_all(file: int, tars: TarReader, path: Path) -> list[Lost]:
    """Write table and samples; each thread appends what it has decoded."""
    table, lost = np.zeros((len(tars), COLUMNS), np.int64), list[Lost]()
    end, lock, start = table.nbytes, threading.Lock(), time.monotonic()

    def write(position: int) -> None:
        nonlocal end
        picture = tars.whole(position)
        if isinstance(picture, Lost):
            lost.append(picture)
            return
        height, width = picture.labels.shape
        with lock:
            offset, end = end, end + height * width * BYTES_PER_PIXEL
        table[position] = offset, height, width, np.uint64(picture.hash).astype(np.int64)
        try:
            _write(file, picture.image, offset)
            _write(file, picture.labels, offset + 3 * height * width)
        except OSError as error:
            raise named(error, path) from None

    tars.prefetch(range(len(tars.shards)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode") as pool:
        for _ in pool.map(write, range(len(tars))):
            pass
    _write(file, table, 0)
    seconds = time.monotonic() - start
    logger.info("decoded %d pictures of %s in %.1f s into %s", len(tars), tars.split, seconds, path.parent)
    return lost


def _write(file: int, array: np.ndarray, offset: int) -> None:
    contiguous: Any = np.ascontiguousarray(array)
    left = memoryview(contiguous).cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
