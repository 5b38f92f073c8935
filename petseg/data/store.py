"""Stores of shard sets: a local folder, or a remote whose shards are staged to the node's cache folder.

Login nodes open stores too: nothing here imports torch, and fsspec is imported only when a remote is read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from petseg.config.sizes import Fit, ImageSize, size_of
from petseg.data.local_cache import cache_folder
from petseg.data.remote.remote_store import RemoteStore, checked_shards, fetch_manifest
from petseg.data.remote.remotes import PACKAGES, PIPE, open_remote
from shards.cause import Cause, ShardSetError
from shards.command import Failure, typed, without_secrets
from shards.files import NotRegular, open_regular, read_regular
from shards.index import Sample, index_name, load_index
from shards.manifest import Manifest, load_manifest

ADVISE_BYTES = 256_000_000  # to prefetch at a time from a local set: the call itself takes 0.25 ms per MB
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


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
        """Announce the shards that are needed next, in this order; returns at once, and replaces the earlier queue."""

    def close(self) -> None: ...


def is_remote(location: str) -> bool:
    """Whether the location is a remote; raises ValueError for a scheme that no store reads."""
    if location.startswith(PIPE):
        return True
    scheme = _SCHEME.match(location)
    if scheme is None or scheme[1] == "file":
        return False
    if scheme[1] not in PACKAGES:
        choices = ", ".join(f"{name}://" for name in (*PACKAGES, "file"))
        raise ValueError(f"{without_secrets(location)}: a shard set is a folder, {choices} or {PIPE}COMMAND")
    return True


def open_store(location: str, cache_dir: str = "", cache_gb: float = 50.0) -> Store:
    """The shard set at a folder, an address or a `pipe:COMMAND`.

    Raises ValueError if there is none, if the location cannot be used, or if a shard does not fit into `cache_gb`.
    """
    if not is_remote(location):
        return LocalStore(location)
    remote = open_remote(location)
    try:
        return RemoteStore(remote, fetch_manifest(remote), cache_folder(cache_dir), cache_gb)
    except BaseException:
        remote.close()
        raise


def read_manifest(location: str, cache_dir: str = "", cache_gb: float = 50.0) -> Manifest:
    """The manifest of a shard set; checks and raises as `open_store`.

    Makes no cache folder: `cache_dir` may be a disk that login nodes do not have.
    """
    if not is_remote(location):
        return load_manifest(folder_of(location))
    with closing(open_remote(location)) as remote:
        manifest = fetch_manifest(remote)
        checked_shards(remote, manifest, cache_gb)
    return manifest


def enlarged_line(manifest: Manifest, location: str, image_size_px: ImageSize, fit: Fit = "squash") -> str:
    """A warning if the pictures of a set were packed smaller than a run wants them, or squashed; empty if not."""
    packed = int(manifest.packer.get("image_size_px", 0))  # 0 = original bytes
    if packed and fit != "squash":
        return (
            f"pictures of {without_secrets(location)} were squashed to {packed} px when they were packed, and "
            f"data.fit = {fit} cannot undo that: pack the set with `python -m shards.pack --image-size-px 0`"
        )
    if not 0 < packed < max(size_of(image_size_px)):
        return ""
    return (
        f"pictures of {without_secrets(location)} were packed at {packed} px, and are enlarged to data.image_size_px = "
        f"{image_size_px}: choose {packed}, or pack them larger"
    )


class LocalStore:
    """A shard set in a folder."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._folder = folder_of(location)
        self.manifest = load_manifest(self._folder)
        self._shards = {shard.name: shard for shard in self.manifest.shards}

    def index(self, shard: str) -> list[Sample]:
        path = self._folder / index_name(shard)
        try:
            content = read_regular(path, follow=False)
        except FileNotFoundError:
            raise ShardSetError(f"{path} is missing: pack the set again") from None
        except NotRegular as error:
            raise self._refused(error) from None
        actual, expected = hashlib.sha256(content).hexdigest(), self._shards[shard].index_sha256
        if actual != expected:
            raise Failure(
                f"{path} is altered (sha256 {actual}, the manifest says {expected}): find all damage with "
                f"`{typed('-m', 'shards.verify', self._folder)}`",
                Cause.DATA,
            )
        return load_index(self._folder, shard)

    def open(self, shard: str) -> int:
        path = self._folder / shard
        try:
            with open_regular(path, follow=False) as file:
                return os.dup(file.fileno())
        except FileNotFoundError:
            raise ShardSetError(
                f"{path} is missing: find all damage with `{typed('-m', 'shards.verify', self._folder)}`"
            ) from None
        except NotRegular as error:
            raise self._refused(error) from None

    def _refused(self, error: NotRegular) -> ShardSetError:
        return ShardSetError(f"{error}: find all damage with `{typed('-m', 'shards.verify', self._folder)}`")

    def prefetch(self, shards: Sequence[str]) -> None:
        """Have the kernel read ahead: cold reads in random order took 0.09 s instead of 0.17 s (ext4, 56 MB)."""
        left = ADVISE_BYTES
        for shard in shards:
            left -= self._shards[shard].num_bytes
            if left < 0:
                return
            # the reader that needs the shard reports errors
            with suppress(OSError), open_regular(self._folder / shard, follow=False) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        pass


def folder_of(location: str) -> Path:
    """The folder of a local shard set; raises ValueError for a file:// address of another host."""
    if not location.startswith("file://"):
        return Path(location)
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{location}: write file:///absolute/path")
    return Path(unquote(parts.path))
