"""Reads samples of a shard set by shard and byte offset, and checks each against the index before it is used."""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from petseg.config.sizes import Fit, ImageSize, Size, size_of
from petseg.data.decode import Pixels, decode_image, decode_labels, decode_whole_image, decode_whole_labels
from petseg.data.plan import Ids
from petseg.data.store import Store
from shards.cause import Cause, ShardSetError, cause_of
from shards.classes import IGNORE_VALUE
from shards.command import NO_ROOM, Failure, typed
from shards.files import decode_json
from shards.index import NO_MEMBER, Member, Sample
from shards.manifest import Shard, key_hash

MAX_OPEN_SHARDS = 64
RETRY_AFTER_S = (0.1, 0.5, 2.0)  # waits before the retries of a read that failed for a transient reason
TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO}
UNREADABLE = (OSError, ValueError, SyntaxError, Failure, Image.DecompressionBombError)
Opened = TypeVar("Opened")
_HEADER, _NAME_BYTES = 512, 100  # of a tar member


@dataclass(frozen=True)
class Lost:
    """A sample that could not be read, and why; its key is empty if the shard's index cannot be read either."""

    shard: str
    key: str
    offset: int
    problem: str
    cause: Cause = Cause.DATA

    def __str__(self) -> str:
        return f"{self.key or 'a sample'} at byte {self.offset} of {self.shard}: {self.problem}"


@dataclass(frozen=True)
class Loaded:
    """The results of reading a batch, besides its pixels."""

    hashes: NDArray[np.uint64]  # (B,) `key_hash` of each sample as it was read; 0 where it is lost
    lost: list[Lost] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    """A sample at its own size."""

    image: Pixels  # (h, w, 3) uint8
    labels: Pixels  # (h, w) uint8
    hash: int  # `key_hash` of its key


class TarReader:
    """Random access to the samples of one split; safe to use from many threads.

    Each sample is read by one `os.pread`. The names of its members in the tar and their CRC-32 are compared with the
    index each time, so that training never sees a flipped byte, a missing mask or another sample in its place.
    """

    def __init__(self, store: Store, split: str, image_size_px: ImageSize | Size, fit: Fit = "squash") -> None:
        self.store, self.split, self.fit = store, split, fit
        self.size_px = size_of(image_size_px)
        self.shards = store.manifest.of_split(split)
        self.shard_sizes = np.array([shard.num_samples for shard in self.shards], dtype=np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._lost_label = IGNORE_VALUE if store.manifest.classes else store.manifest.source.values["background"]
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def key(self, position: int) -> str:
        """The key of a sample; raises ValueError or OSError if the index of its shard cannot be read."""
        number, row = self._locate(position)
        return self._shard(number).samples()[row].key

    def prefetch(self, shards: Iterable[int]) -> None:
        """Announce the shards (numbers within the split) that are read next, in this order."""
        self.store.prefetch([self.shards[number].name for number in shards])

    def shards_of(self, first: int, end: int) -> range:
        """Numbers of the shards that hold the positions from `first` to `end`."""
        return range(self._locate(first)[0], self._locate(end - 1)[0] + 1) if first < end else range(0)

    def load(self, ids: Ids, image: Pixels, labels: Pixels) -> Loaded:
        """Read and decode samples into image (B, H, W, 3) and labels (B, H, W), both contiguous uint8.

        An unreadable sample is among the lost ones, and in the batch it is a black picture of background.
        """
        loaded = Loaded(np.zeros(len(ids), np.uint64))
        for i, position in enumerate(ids):
            hash_or_lost = self._load_one(int(position), image[i], labels[i])
            if isinstance(hash_or_lost, Lost):
                loaded.lost.append(hash_or_lost)
            else:
                loaded.hashes[i] = hash_or_lost
        return loaded

    def _load_one(self, position: int, image: Pixels, labels: Pixels) -> int | Lost:
        """The hash of the sample's key, or why it is lost."""

        def decode(sample: Sample, jpg: memoryview, png: memoryview) -> int:
            decode_image(jpg, image, self.fit == "letterbox")
            decode_labels(png, labels, self.fit == "letterbox")
            return key_hash(sample.key)

        read = self._read(position, decode)
        if isinstance(read, Lost):
            image[...], labels[...] = 0, self._lost_label
        return read

    def whole(self, position: int) -> Whole | Lost:
        """A sample at its own size, or why it cannot be read."""

        def decode(sample: Sample, jpg: memoryview, png: memoryview) -> Whole:
            image, labels = decode_whole_image(jpg), decode_whole_labels(png)
            if image.shape[:2] != labels.shape:
                sizes = " and ".join(f"{array.shape[1]}x{array.shape[0]} px" for array in (image, labels))
                raise ValueError(f"picture and mask differ in size ({sizes}), so that no crop can be cut from both")
            return Whole(image, labels, key_hash(sample.key))

        return self._read(position, decode)

    def _read(self, position: int, decode: Callable[[Sample, memoryview, memoryview], Opened]) -> Opened | Lost:
        """What `decode` makes of a sample, its JPEG and its PNG; or why it is lost."""
        number, row = self._locate(position)
        key, offset = "", 0
        try:
            sample = self._retried(number, lambda shard: shard.samples()[row])
            key, offset = sample.key, sample.jpg.offset
            return decode(sample, *self._retried(number, lambda shard: shard.read(sample)))
        except UNREADABLE as error:
            # no room for staging its shard: the sample is not damaged
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            return Lost(self.shards[number].name, key, offset, str(error), cause_of(error) or Cause.DATA)

    def encoded(self, position: int) -> tuple[memoryview, memoryview]:
        """A sample's picture and labels as they were packed: JPEG and PNG.

        Raises ValueError, OSError or Failure if they cannot be read or are not what the index says.
        """
        number, sample = self._sample(position)
        return self._retried(number, lambda shard: shard.read(sample))

    def whole_labels(self, position: int) -> Pixels | Lost:
        """A sample's labels (H, W) uint8 at the size that they were packed at."""
        number, row = self._locate(position)
        key, offset = "", 0
        try:
            sample = self._retried(number, lambda shard: shard.samples()[row])
            key, offset = sample.key, sample.png.offset
            return decode_whole_labels(self._retried(number, lambda shard: shard.read_member(sample, sample.png)))
        except UNREADABLE as error:
            return Lost(self.shards[number].name, key, offset, str(error), cause_of(error) or Cause.DATA)

    def facts(self, position: int) -> dict[str, Any]:
        """The content of a sample's KEY.json, {} if the set has none; raises ValueError or OSError if it is damaged."""
        number, sample = self._sample(position)
        if sample.json == NO_MEMBER:
            return {}
        facts: dict[str, Any] = decode_json(self._retried(number, lambda shard: shard.read_member(sample, sample.json)))
        return facts

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _sample(self, position: int) -> tuple[int, Sample]:
        """The number of a sample's shard, and its row in the index."""
        number, row = self._locate(position)
        return number, self._retried(number, lambda shard: shard.samples()[row])

    def _locate(self, position: int) -> tuple[int, int]:
        """The number of a sample's shard, and the number of its row in the index."""
        number = int(np.searchsorted(self._ends, position, side="right"))
        return number, position - int(self._ends[number] - self.shard_sizes[number])

    def _shard(self, number: int) -> _OpenShard:
        with self._lock:
            shard = self._open.get(number)
            if shard is None:
                shard = self._open[number] = _OpenShard(self.store, self.shards[number])
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return shard

    def _retried(self, number: int, action: Callable[[_OpenShard], Opened]) -> Opened:
        """The result of the action, which is retried after transient failures."""
        for wait_s in RETRY_AFTER_S:
            try:
                return action(self._shard(number))
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                with self._lock:
                    self._open.pop(number, None)  # a stale handle stays stale: open the file anew
                time.sleep(wait_s)
        return action(self._shard(number))


class _OpenShard:
    """One shard that is being read: its index, and its file, which is closed when no thread uses it any more.

    Opening may fetch the file from a remote: it happens once, outside the reader's lock; all threads get its error.
    """

    def __init__(self, store: Store, shard: Shard) -> None:
        self._store, self._shard = store, shard
        self._lock = threading.Lock()
        self._samples: list[Sample] | None = None
        self._file: int | None = None
        self._error: Exception | None = None

    def samples(self) -> list[Sample]:
        """The rows of its index."""
        with self._lock:
            if self._samples is None:
                samples = self._once(lambda: self._store.index(self._shard.name))
                if len(samples) != self._shard.num_samples:
                    raise ShardSetError(
                        f"its index lists {len(samples)} samples, the manifest {self._shard.num_samples}: check the "
                        f"set with `{typed('-m', 'shards.verify', self._store.location)}`"
                    )
                self._samples = samples
            return self._samples

    def read(self, sample: Sample) -> tuple[memoryview, memoryview]:
        """The sample's picture and labels, by one read."""
        members = (sample.jpg, sample.png)
        start = min(member.offset for member in members) - _HEADER
        span = self._span(start, max(member.offset + member.num_bytes for member in members))
        return _member(span, start, sample.key, sample.jpg), _member(span, start, sample.key, sample.png)

    def read_member(self, sample: Sample, member: Member) -> bytes:
        start = member.offset - _HEADER
        span = self._span(start, member.offset + member.num_bytes)
        return bytes(_member(span, start, sample.key, member))

    def _span(self, start: int, end: int) -> memoryview:
        with self._lock:
            if self._file is None:
                self._file = self._once(lambda: self._store.open(self._shard.name))
                weakref.finalize(self, os.close, self._file)
        return memoryview(os.pread(self._file, end - start, start))

    def _once(self, attempt: Callable[[], Opened]) -> Opened:
        if self._error is not None:
            raise self._error
        try:
            return attempt()
        except Exception as error:
            self._error = error
            raise


def _member(span: memoryview, start: int, key: str, member: Member) -> memoryview:
    """A member's bytes, from the span of its tar that starts at byte `start`; raises ValueError if they are damaged."""
    at = member.offset - start
    content = span[at : at + member.num_bytes]
    if len(content) != member.num_bytes:
        raise ValueError(f"the shard ends at byte {start + len(span)}, {key} at {member.offset + member.num_bytes}")
    path = bytes(span[at - _HEADER : at - _HEADER + _NAME_BYTES]).rstrip(b"\0")
    name = path.rpartition(b"/")[2].decode(errors="replace")
    cut = len(path) == _NAME_BYTES  # foreign shards can have longer paths, which the header cuts off
    if not cut and not name.startswith(f"{key}."):
        raise ValueError(f"{name or 'nothing'!r} lies where {key} should")
    if zlib.crc32(content) != member.crc32:
        raise ValueError(f"the bytes of {name} are altered: their CRC-32 does not match the index")
    return content
