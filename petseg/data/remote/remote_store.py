"""The store of a remote shard set, whose shards are staged to the node's cache folder as they are needed.

Login nodes read manifests with it: nothing here imports torch, and fsspec is imported only when a remote is read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from petseg.data.local_cache import GB, make_room, touch
from petseg.data.remote.remotes import Remote
from petseg.data.remote.staging import Expected, fetch
from shards.cause import ShardSetError
from shards.index import Sample, index_name, load_index
from shards.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, save_manifest

PREFETCH_THREADS = 2
EVICTED_TRIES = 5  # another process can evict a file between its staging and its opening
PREFETCH_SHARE = 0.5  # of data.cache_gb: with more, prefetched shards evict each other
MANIFEST_MAX_BYTES = 1 << 28
INDEX_MAX_BYTES_PER_SAMPLE = 1024  # a row is a key and nine numbers, about 100 bytes

logger = logging.getLogger(__name__)


class RemoteStore:
    """A remote shard set, staged file by file to `CACHE/shards/HASH`, which all processes of the node share."""

    def __init__(self, remote: Remote, manifest: Manifest, cache: Path, cache_gb: float) -> None:
        self.location, self.manifest = remote.shown, manifest
        self._remote, self._cache, self._cache_gb = remote, cache, cache_gb
        self._shards = checked_shards(remote, manifest, cache_gb)
        self._folder = cache / "shards" / manifest.hash[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        save_manifest(manifest, self._folder)  # shards.verify reads this folder
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
                    path.unlink(missing_ok=True)  # this disk's fault: the fetched bytes were right
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
            # a reader keeps recently opened shards open, so that staging them again is useless
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
        self._remote.close()

    def _evicted(self, name: str) -> OSError:
        return OSError(f"{name} is evicted from {self._cache} again and again before it is read: raise data.cache_gb")

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self._stage_tar(shard)
            except Exception as error:  # the reader that needs it tries again, and reports
                logger.debug("prefetch of %s: %s", shard, error)

    def _next(self) -> str | None:
        """Wait for room ahead, and return the next shard to stage; None when the store is closed."""
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
        """The staged file; the first process of the node that needs it fetches it while the others wait."""
        path = self._folder / name
        if not _is_staged(path, expected):
            with FileLock(self._folder / f"{name}.lock"):
                if not _is_staged(path, expected):
                    # a killed process left it: this process holds the lock
                    for aside in self._folder.glob(f".{name}.*.part"):
                        aside.unlink(missing_ok=True)
                    make_room(self._cache, expected.max_bytes, self._cache_gb)
                    fetch(self._remote, name, path, expected, self._stopped)
        touch(path)
        return path


def _is_staged(path: Path, expected: Expected) -> bool:
    """Whether a file of the right size is there: staging compared its sha256, and each read compares a CRC-32."""
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        return False
    return num_bytes == expected.num_bytes if expected.num_bytes is not None else num_bytes <= expected.max_bytes


def fetch_manifest(remote: Remote) -> Manifest:
    """Fetch the manifest anew: it shows whether the staged files still belong to the set."""
    with tempfile.TemporaryDirectory(prefix="petseg-") as folder:
        for last in (False, True):  # no sha256 of it is known, but a wrong byte makes it contradict itself
            fetch(remote, MANIFEST_NAME, Path(folder, MANIFEST_NAME), Expected(MANIFEST_MAX_BYTES), threading.Event())
            try:
                return load_manifest(folder)
            except ValueError as error:
                if last:
                    raise ShardSetError(str(error).replace(folder, remote.shown)) from None
    raise AssertionError("unreachable")


def checked_shards(remote: Remote, manifest: Manifest, cache_gb: float) -> dict[str, Shard]:
    """The shards by name; raises ValueError for a shard too large for the cache."""
    for shard in manifest.shards:
        if shard.num_bytes > cache_gb * GB:
            size = f"{shard.num_bytes / GB:.3g} GB"
            raise ValueError(
                f"{shard.name} at {remote.shown} has {size}, more than data.cache_gb = {cache_gb:g}: raise it"
            )
    return {shard.name: shard for shard in manifest.shards}
