"""Where a shard set lies: a local folder, or a remote place whose shards are staged to the node's cache folder.

A login node opens a store too: nothing here imports torch, and fsspec only where a remote place is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from petseg.data.local_cache import GB, cache_folder, make_room, touch
from petseg.data.staging import PACKAGES, PIPE, Expected, Place, fetch, open_place, without_secrets
from shards.command import Failure
from shards.manifest import MANIFEST_NAME, Manifest, Sample, Shard, index_name, load_index, load_manifest, write_whole

PREFETCH_THREADS = 2
ADVISE_BYTES = 256_000_000  # of a local set at a time: the advice itself takes 0.25 ms per MB
EVICTED_TRIES = 5  # between being staged and being opened a file can be evicted by another process
PREFETCH_SHARE = 0.5  # of data.cache_gb: more, and what is staged ahead evicts what is staged ahead
MANIFEST_MAX_BYTES = 1 << 28
INDEX_MAX_BYTES_PER_SAMPLE = 1024  # a row is a key and nine numbers, about 100 bytes
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Access to the shards of one set, from many threads."""

    location: str  # as configured, for messages; without passwords and queries
    manifest: Manifest

    def index(self, shard: str) -> list[Sample]:
        """The rows of a shard's index.

        Raises Failure if it is damaged, ValueError if it is missing or forbidden, OSError if it cannot be reached.
        """

    def open(self, shard: str) -> int:
        """A read-only descriptor of the whole tar, which the caller closes; raises as `index`."""

    def prefetch(self, shards: Sequence[str]) -> None:
        """These are needed soon, in this order; returns at once, and replaces what was queued before."""

    def close(self) -> None: ...


def is_remote(location: str) -> bool:
    """Whether shards are staged from there; raises ValueError for a scheme that no store reads."""
    if location.startswith(PIPE):
        return True
    found = _SCHEME.match(location)
    if found is None or found[1] == "file":
        return False
    if found[1] not in PACKAGES:
        choices = ", ".join(f"{scheme}://" for scheme in (*PACKAGES, "file"))
        raise ValueError(f"{without_secrets(location)}: a shard set is a folder, {choices} or {PIPE}COMMAND")
    return True


def open_store(location: str, cache_dir: str = "", cache_gb: float = 50.0) -> Store:
    """The shard set at a folder, an address or a `pipe:COMMAND`.

    Raises ValueError if there is none, if the location cannot be used, or if a shard does not fit into `cache_gb`.
    """
    if not is_remote(location):
        return LocalStore(location)
    place = open_place(location)
    try:
        return RemoteStore(place, _fetch_manifest(place), cache_folder(cache_dir), cache_gb)
    except BaseException:
        place.close()
        raise


def read_manifest(location: str, cache_dir: str = "", cache_gb: float = 50.0) -> Manifest:
    """The manifest of a shard set, checked as `open_store` does; raises as it.

    Makes no cache folder: `cache_dir` may be a disk that login nodes do not have.
    """
    if not is_remote(location):
        return load_manifest(_folder_of(location))
    with closing(open_place(location)) as place:
        manifest = _fetch_manifest(place)
        _checked_shards(place, manifest, cache_gb)
    return manifest


class LocalStore:
    """A shard set in a folder."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._folder = _folder_of(location)
        self.manifest = load_manifest(self._folder)
        self._shards = {shard.name: shard for shard in self.manifest.shards}

    def index(self, shard: str) -> list[Sample]:
        path = self._folder / index_name(shard)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: pack the set again") from None
        actual, expected = hashlib.sha256(content).hexdigest(), self._shards[shard].index_sha256
        if actual != expected:
            raise Failure(
                f"{path} is altered (sha256 {actual}, the manifest says {expected}): find all damage with "
                f"`python -m shards.verify {self._folder}`"
            )
        return load_index(self._folder, shard)

    def open(self, shard: str) -> int:
        path = self._folder / shard
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ValueError(
                f"{path} is missing: find all damage with `python -m shards.verify {self._folder}`"
            ) from None

    def prefetch(self, shards: Sequence[str]) -> None:
        """Have the kernel read ahead: cold reads in random order took half as long (ext4, 56 MB, 0.17 s to 0.09 s)."""
        left = ADVISE_BYTES
        for shard in shards:
            left -= self._shards[shard].num_bytes
            if left < 0:
                return
            with suppress(OSError):  # the reader that needs it reports
                descriptor = os.open(self._folder / shard, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def close(self) -> None:
        pass


class RemoteStore:
    """A shard set far away, staged file by file to `CACHE/shards/HASH`, where all processes of the node find it."""

    def __init__(self, place: Place, manifest: Manifest, cache: Path, cache_gb: float) -> None:
        self.location, self.manifest = place.shown, manifest
        self._place, self._cache, self._cache_gb = place, cache, cache_gb
        self._shards = _checked_shards(place, manifest, cache_gb)
        self._folder = cache / "shards" / manifest.hash[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / MANIFEST_NAME, json.dumps(asdict(manifest)))  # `shards.verify` reads the folder
        self._turn = threading.Condition()
        self._queue: deque[str] = deque()
        self._unread: dict[str, int] = {}  # staged ahead and not opened since -> bytes
        self._opened: set[str] = set()  # since the last call of `prefetch`
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def index(self, shard: str) -> list[Sample]:
        expected, name = self._shards[shard], index_name(shard)
        most = INDEX_MAX_BYTES_PER_SAMPLE * (expected.num_samples + 4)
        path = self._folder / name
        for _ in range(EVICTED_TRIES):
            self._stage(name, Expected(most, sha256=expected.index_sha256))
            try:
                if hashlib.sha256(path.read_bytes()).hexdigest() != expected.index_sha256:
                    path.unlink(missing_ok=True)  # this disk's fault: what was fetched was right
                    continue
                return load_index(self._folder, shard)
            except (FileNotFoundError, ValueError):
                if path.exists():
                    raise
        raise self._evicted(name)

    def open(self, shard: str) -> int:
        for _ in range(EVICTED_TRIES):
            path = self._stage_tar(shard)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            with self._turn:
                self._opened.add(shard)
                self._unread.pop(shard, None)
                self._turn.notify_all()
            return descriptor
        raise self._evicted(shard)

    def prefetch(self, shards: Sequence[str]) -> None:
        with self._turn:
            # a reader keeps what it opened lately: staging that again would be for nothing
            self._queue = deque(shard for shard in dict.fromkeys(shards) if shard not in self._opened)
            self._unread = {shard: size for shard, size in self._unread.items() if shard in self._queue}
            self._opened = set()
            self._turn.notify_all()
            while self._queue and not self._stopped.is_set() and len(self._threads) < PREFETCH_THREADS:
                thread = threading.Thread(target=self._work, name="prefetch", daemon=True)  # never delays the exit
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        self._stopped.set()
        with self._turn:
            self._turn.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)
        self._place.close()

    def _evicted(self, name: str) -> OSError:
        return OSError(f"{name} is evicted from {self._cache} again and again before it is read: raise data.cache_gb")

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self._stage_tar(shard)
            except Exception as error:  # the reader that needs it tries again, and reports
                logger.debug("prefetch of %s: %s", shard, error)

    def _next(self) -> str | None:
        """The next shard to stage once there is room ahead for it; None when the store is closed."""
        with self._turn:
            while not self._stopped.is_set():
                if self._queue:
                    size = self._shards[self._queue[0]].num_bytes
                    ahead = sum(self._unread.values())
                    if not ahead or ahead + size <= PREFETCH_SHARE * self._cache_gb * GB:
                        shard = self._queue.popleft()
                        self._unread[shard] = size
                        return shard
                self._turn.wait()
            return None

    def _stage_tar(self, shard: str) -> Path:
        expected = self._shards[shard]
        return self._stage(shard, Expected(expected.num_bytes, expected.num_bytes, expected.sha256))

    def _stage(self, name: str, expected: Expected) -> Path:
        """The staged file, fetched by the one process of the node that is first while the others wait for it."""
        path = self._folder / name
        if not _is_staged(path, expected):
            with FileLock(self._folder / f"{name}.lock"):
                if not _is_staged(path, expected):
                    for aside in self._folder.glob(f".{name}.*.part"):  # of one that was killed: this lock is ours
                        aside.unlink(missing_ok=True)
                    make_room(self._cache, expected.max_bytes, self._cache_gb)
                    fetch(self._place, name, path, expected, self._stopped)
        touch(path)
        return path


def _is_staged(path: Path, expected: Expected) -> bool:
    """By its size alone: its sha256 was compared when it was staged, and each sample's CRC-32 is at each read."""
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        return False
    return num_bytes == expected.num_bytes if expected.num_bytes is not None else num_bytes <= expected.max_bytes


def _folder_of(location: str) -> Path:
    if not location.startswith("file://"):
        return Path(location)
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{location}: write file:///absolute/path")
    return Path(unquote(parts.path))


def _fetch_manifest(place: Place) -> Manifest:
    """Always fetched anew: it says whether what is staged is still the set."""
    with tempfile.TemporaryDirectory(prefix="petseg-") as folder:
        for last in (False, True):  # it has no sha256 to be compared with, but contradicts itself if a byte is wrong
            fetch(place, MANIFEST_NAME, Path(folder, MANIFEST_NAME), Expected(MANIFEST_MAX_BYTES), threading.Event())
            try:
                return load_manifest(folder)
            except ValueError as error:
                if last:
                    raise ValueError(str(error).replace(folder, place.shown)) from None
    raise AssertionError("unreachable")


def _checked_shards(place: Place, manifest: Manifest, cache_gb: float) -> dict[str, Shard]:
    """Name -> shard; raises ValueError for a name that is no plain file name, or a shard too large for the cache."""
    for shard in manifest.shards:
        if not _SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"the manifest at {place.shown} names a shard {shard.name!r}: pack the set again")
        if shard.num_bytes > cache_gb * GB:
            size = f"{shard.num_bytes / GB:.3g} GB"
            raise ValueError(
                f"{shard.name} at {place.shown} has {size}, more than data.cache_gb = {cache_gb:g}: raise it"
            )
    return {shard.name: shard for shard in manifest.shards}
