"""A shard set is built in a hidden folder inside its final one, and moved out whole: killed at any time, run it again.

The staged manifest is the point of no return: before it, a killed pack leaves nothing outside the hidden folder;
after it, the next pack first completes the moves. The final manifest goes last, so there is never one without its
shards. The shards that were finished by then can be used again by the next pack (shards.packing.resume).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from shards.files import fsync
from shards.index import index_name
from shards.manifest import MANIFEST_NAME, SPLITS, Manifest, load_manifest
from shards.near_duplicates.note import NEAR_DUPLICATES_NAME
from shards.packing.plan import TooManyCorrupt
from shards.pool import WorkerLost

STAGING = ".packing"
LOCK = "lock"
RESUME_NAME = "resume.json"  # which pack the staged shards belong to
INTERRUPTIONS = (
    KeyboardInterrupt,
    OSError,
    WorkerLost,
    TooManyCorrupt,
)  # that speak against none of the shards before them
OURS = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}(\.tar|\.index\.json)")

logger = logging.getLogger(__name__)


@contextmanager
def staging_folder(out: Path, *, resume: bool = False) -> Iterator[Path]:
    """The hidden folder to build in, locked against a second pack into the same place.

    It is empty, or with `resume` holds the finished shards of an earlier pack and its resume.json. Completes what a
    killed pack had begun to move. After an interruption the finished shards stay, after any other error nothing does.
    Raises ValueError if another pack is at work.
    """
    with locked(out) as staging:
        if (staging / MANIFEST_NAME).exists():
            publish(staging, out)
        empty(staging, _worth_keeping(staging) if resume else frozenset())
        kept: frozenset[str] = frozenset()
        try:
            yield staging
        except INTERRUPTIONS:
            kept = _worth_keeping(staging)
            raise
        finally:
            if kept:
                empty(staging, kept)  # a disk that is full has more need of the space
                num_shards = sum(name.endswith(".tar") for name in kept)
                logger.warning("%d finished shards stay in %s: add --resume to continue with them", num_shards, staging)
            elif not (staging / MANIFEST_NAME).exists():  # else Ctrl-C or the like came between the moves
                shutil.rmtree(staging)
            with suppress(OSError):
                out.rmdir()  # a pack that failed leaves no empty folder either


@contextmanager
def locked(out: Path) -> Iterator[Path]:
    """The hidden folder of `out`, as it is, while no other process may write there.

    Raises ValueError if another one does, or if the folder or its lock is a link: what is built in it, and removed
    from it, would be elsewhere.
    """
    staging = out / STAGING
    if staging.is_symlink():
        raise ValueError(f"{staging} is a symbolic link: remove it, or choose another --out")
    staging.mkdir(parents=True, exist_ok=True)
    with _open_lock(staging / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.fstat(lock.fileno()).st_ino == (staging / LOCK).stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_current = False
        if not is_current:
            raise ValueError(f"another pack is writing into {out}: wait for it, or choose another --out")
        yield staging


def _open_lock(path: Path) -> TextIO:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise ValueError(
            f"{path} is not a lock file of a pack: remove {path.parent}, or choose another --out"
        ) from None
    return os.fdopen(descriptor, "w")


def empty(staging: Path, kept: frozenset[str] = frozenset()) -> None:
    """Remove all but the lock and the files named."""
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in kept and path.name != LOCK:
            path.unlink()


def _worth_keeping(staging: Path) -> frozenset[str]:
    """The files of the finished shards, if there is one, and the file that says which pack they belong to.

    An index is written last, so a shard without one is half a shard. A staged manifest means that all is done.
    """
    names = {path.name for path in staging.iterdir()}
    shards = [name for name in names if OURS.fullmatch(name) and name.endswith(".tar") and index_name(name) in names]
    if not shards or RESUME_NAME not in names or MANIFEST_NAME in names:
        return frozenset()
    return frozenset([RESUME_NAME, *shards, *map(index_name, shards)])


def publish(staging: Path, out: Path) -> Manifest:
    """Move a staged set into place, taking the set that is there out of the way; safe to repeat after a kill.

    Raises ValueError, before anything is moved, if a folder stands where a file is to go.
    """
    manifest = load_manifest(staging)
    if folders := [path for path in shard_files(out) if path.is_dir() and not path.is_symlink()]:
        raise ValueError(
            f"{folders[0]} is a folder, where a shard's file is to go: move it away, or choose another --out"
        )
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    names = [name for shard in manifest.shards for name in (shard.name, index_name(shard.name))]
    for path in shard_files(out):
        if path.name not in names:
            path.unlink()
    for name in names:
        if (staging / name).exists():
            (staging / name).replace(out / name)
    if (staging / NEAR_DUPLICATES_NAME).exists():  # one of another set that stays is known by its manifest hash
        (staging / NEAR_DUPLICATES_NAME).replace(out / NEAR_DUPLICATES_NAME)
    fsync(out)
    (staging / MANIFEST_NAME).replace(out / MANIFEST_NAME)
    fsync(out)
    return manifest


def shard_files(out: Path) -> list[Path]:
    """The files in `out` whose names a pack would use."""
    return sorted(path for path in out.iterdir() if OURS.fullmatch(path.name))


def is_complete(out: Path, manifest: Manifest) -> bool:
    """Whether all files of the set are there and have the right size; `shards.verify` also reads them."""
    sizes = {path.name: path.stat().st_size for path in shard_files(out) if path.is_file() and not path.is_symlink()}
    return all(sizes.get(s.name) == s.num_bytes and index_name(s.name) in sizes for s in manifest.shards)
