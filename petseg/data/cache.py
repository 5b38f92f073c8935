"""Caches of decoded samples: a split is decoded once per node into a memory-mapped file that all ranks and runs share.

A file is named by the shard set's hash, the split, the size and how pictures get it. It holds the pictures
(N, H, W, 3), the labels (N, H, W) and the 64-bit hashes of the keys (N,) as they were read, and nothing else. One
process builds it under a lock while the others wait. A split with unreadable samples is not cached, so that the set is
read anew once it is repaired.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from petseg.config.sizes import ImageSize, Size, size_of, text_of
from petseg.data.decode import Pixels
from petseg.data.loader import Batch
from petseg.data.local_cache import cache_folder, locked, make_room, touch
from petseg.data.plan import Ids, MicroBatch
from petseg.data.tars import Loaded, Lost, TarReader
from shards.files import named

LAYOUT_VERSION = 1  # raised when decoding gives other pixels than before
CHUNK = 64  # samples that a thread decodes at a time
LOG_EVERY_S = 10.0
DEVICE_SHARE, MEMORY_SHARE = 0.25, 0.5  # of a GPU's memory, and of the machine's, that "auto" lets a set take

CacheKind = Literal["none", "node", "device"]
logger = logging.getLogger(__name__)


class NodeCache:
    """The decoded samples of one split, in a file that the kernel keeps in memory once for all processes."""

    def __init__(self, path: Path, tars: TarReader) -> None:
        self._tars, self.size_px = tars, tars.size_px
        self.image, self.labels, self.hashes = _arrays(path, tars, "r")

    def __len__(self) -> int:
        return len(self.hashes)

    def key(self, position: int) -> str:
        return self._tars.key(position)

    def load(self, ids: Ids, image: Pixels, labels: Pixels) -> Loaded:
        """Copy samples into image (B, H, W, 3) and labels (B, H, W) uint8."""
        np.take(self.image, ids, axis=0, out=image, mode="clip")  # "raise" would copy twice; the plan is in range
        np.take(self.labels, ids, axis=0, out=labels, mode="clip")
        return Loaded(self.hashes[ids])


class DeviceCache:
    """The decoded samples of one split in the device's own memory: nothing is copied to it in a step."""

    def __init__(self, node: NodeCache, device: torch.device) -> None:
        self._node, self.size_px, self._device = node, node.size_px, device
        self._image = torch.from_numpy(np.array(node.image)).to(device)
        self._labels = torch.from_numpy(np.array(node.labels)).to(device)

    def __len__(self) -> int:
        return len(self._node)

    def key(self, position: int) -> str:
        return self._node.key(position)

    def batches(self, plan: Iterable[MicroBatch]) -> Iterator[Batch]:
        """A Batch on the device for each micro-batch of the plan."""
        for micro_batch in plan:
            ids = micro_batch.ids
            rows = torch.from_numpy(ids).to(self._device, non_blocking=True)
            image, labels = self._image.index_select(0, rows), self._labels.index_select(0, rows)
            weight = torch.full((len(ids),), 0.0 if micro_batch.filler else 1.0)
            yield Batch(micro_batch, image, labels, weight, self._node.hashes[ids])


@dataclass(frozen=True)
class Choice:
    """The cache that keeps decoded samples, and why that one, in words."""

    cache: CacheKind
    why: str


@dataclass(frozen=True)
class Room:
    """The space that decoded samples may take, in bytes."""

    device: int  # 0 without a GPU
    memory: int
    disk: int


def choose_cache(wanted: Literal["auto", "none", "node", "device"], num_bytes: int, room: Room) -> Choice:
    """The cache for `num_bytes` of decoded samples: the one that is wanted, or with "auto" the fastest with room."""
    size = f"{num_bytes / 1e9:.2f} GB decoded"
    if wanted != "auto":
        return Choice(wanted, f"{size}; data.cache = {wanted}")
    if num_bytes > room.disk:
        return Choice("none", f"{size} do not fit in the {room.disk / 1e9:.2f} GB of data.cache_gb and the disk")
    if num_bytes > room.memory:
        return Choice("none", f"{size} are more than half of the memory: the kernel could not keep them")
    if room.device and num_bytes <= room.device:
        return Choice("device", f"{size}, within a quarter of the GPU's memory")
    return Choice("node", f"{size}, decoded once and shared by all processes of this node")


def room_here(folder: Path, cache_gb: float, device: torch.device) -> Room:
    """The room on this machine, its device, and the disk of the cache folder."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpu = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    disk = min(int(cache_gb * 1e9), shutil.disk_usage(folder).free)
    return Room(int(gpu * DEVICE_SHARE), int(memory * MEMORY_SHARE), disk)


def decoded_bytes(num_samples: int, image_size_px: ImageSize | Size) -> int:
    """Bytes of the cache of so many samples: four a pixel, and the hash of each key."""
    height, width = size_of(image_size_px)
    return num_samples * (height * width * 4 + 8)


def open_node_cache(tars: TarReader, cache_dir: str, cache_gb: float) -> NodeCache | None:
    """The cache of a split, built if it does not exist; None if samples of the split cannot be read.

    Raises ValueError if the cache folder has no room.
    """
    folder = cache_folder(cache_dir)
    fit = "" if tars.fit == "squash" else f"-{tars.fit}"
    name = f"{tars.store.manifest.hash[:16]}-{tars.split}-{text_of(tars.size_px)}{fit}-v{LAYOUT_VERSION}.u8"
    path = folder / "decoded" / name
    path.parent.mkdir(exist_ok=True)
    if not _is_built(path, tars):
        with locked(path):
            if not _is_built(path, tars) and not _build(path, tars, folder, cache_gb):
                return None
    touch(path)
    return NodeCache(path, tars)


def _is_built(path: Path, tars: TarReader) -> bool:
    return path.exists() and path.stat().st_size == decoded_bytes(len(tars), tars.size_px)


def _build(path: Path, tars: TarReader, folder: Path, cache_gb: float) -> bool:
    """Decode the split into a file aside, fsync, rename; False, without a file, if a sample cannot be read."""
    num_bytes = decoded_bytes(len(tars), tars.size_px)
    make_room(folder, num_bytes, cache_gb)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with aside.open("wb") as file:
            _allocate(file.fileno(), num_bytes, path)
        lost = _decode_all(aside, tars)
        if lost:
            logger.warning("%s is not cached: %d samples cannot be read, such as %s", tars.split, len(lost), lost[0])
            return False
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _allocate(file: int, num_bytes: int, path: Path) -> None:
    """Reserve the disk space now: a full disk raises an error that names the file, rather than SIGBUS later."""
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except OSError as error:
        raise named(error, path) from None


def _decode_all(path: Path, tars: TarReader) -> list[Lost]:
    image, labels, hashes = _arrays(path, tars, "r+")
    start = logged = time.monotonic()
    done, lost = 0, list[Lost]()

    def decode(first: int) -> tuple[int, list[Lost]]:
        ids = np.arange(first, min(first + CHUNK, len(tars)))
        loaded = tars.load(ids, image[first : first + CHUNK], labels[first : first + CHUNK])
        hashes[first : first + CHUNK] = loaded.hashes
        return len(ids), loaded.lost

    tars.prefetch(range(len(tars.shards)))
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for future in as_completed([pool.submit(decode, first) for first in range(0, len(tars), CHUNK)]):
            count, lost_here = future.result()
            done, lost = done + count, lost + lost_here
            now = time.monotonic()
            if now - logged > LOG_EVERY_S:
                logged, left_s = now, (now - start) / done * (len(tars) - done)
                logger.info("decoding %s: %d of %d, %.0f s left", tars.split, done, len(tars), left_s)
    for array in (image, labels, hashes):
        array.flush()
    logger.info("decoded %d pictures of %s in %.1f s into %s", done, tars.split, time.monotonic() - start, path.parent)
    return lost


def _arrays(path: Path, tars: TarReader, mode: Literal["r", "r+"]) -> tuple[np.memmap, np.memmap, np.memmap]:
    """Pictures (N, H, W, 3) and labels (N, H, W) uint8, and hashes (N,) uint64, in a cache file."""
    num, (height, width) = len(tars), tars.size_px
    pixels = num * height * width
    return (
        np.memmap(path, np.uint8, mode, 0, (num, height, width, 3)),
        np.memmap(path, np.uint8, mode, pixels * 3, (num, height, width)),
        np.memmap(path, np.uint64, mode, pixels * 4, (num,)),
    )
