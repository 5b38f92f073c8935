"""The node's cache folder: private to the user, bounded, and shared by all processes and runs of that user on a node.

Its files can be fetched or built again, so the least recently used ones are deleted when room is needed. A file's
mtime is its last use. Files that end in `.lock` are locks and stay; `.part` and `.tmp` are files being written.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shards.cause import Cause

LOCK_SUFFIX, ASIDE_SUFFIXES = ".lock", (".part", ".tmp")
ROOM_LOCK = f".room{LOCK_SUFFIX}"
DEAD_ASIDE_AFTER_S = 24 * 3600.0  # nothing is written for a day: its writer was killed
GB = 1e9

logger = logging.getLogger(__name__)


class CacheTooSmall(ValueError):
    """The limit of the cache folder is too low for what a run needs."""

    cause = Cause.DISK_FULL


@dataclass(frozen=True)
class _Entry:
    last_use_ns: int  # mtime, nanoseconds since 1970
    num_bytes: int
    path: Path


def cache_folder(configured: str = "") -> Path:
    """`configured`, or $PETSEG_CACHE, or `petseg-cache-UID` in $SLURM_TMPDIR, $TMPDIR or /tmp; made if it is not there.

    Raises ValueError if it belongs to another user, if others may write to it, or if it is a symbolic link: in a
    shared /tmp anyone could have put it there, and would control the training data.
    """
    path = _configured_path(configured)
    if path.is_symlink():
        raise ValueError(f"cache folder {path} is a symbolic link: set data.cache_dir to the folder it points to")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot make the cache folder {path}: {error.strerror}; choose one with data.cache_dir"
        ) from None
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ValueError(
            f"cache folder {path} belongs to user {status.st_uid}: choose one of yours with data.cache_dir"
        )
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(f"others may write to the cache folder {path} (mode {mode:o}): `chmod 700 {path}`")
    return path


def make_room(folder: Path, num_bytes: int, limit_gb: float) -> None:
    """Delete the least recently used files until `num_bytes` more fit into `limit_gb` and on the disk.

    Two processes that call this at the same moment and write only later can exceed the limit by what they write; the
    next call corrects that. A file that another process has open or mapped stays readable for it (Linux). Raises
    ValueError if the limit is too low, OSError (ENOSPC) if there is no room now.
    """
    limit = int(limit_gb * GB)
    if num_bytes > limit:
        raise CacheTooSmall(
            _no_room(folder, num_bytes, f"data.cache_gb = {limit_gb:g} allows {_size(limit)}", "raise data.cache_gb")
        )
    with FileLock(folder / ROOM_LOCK):
        entries, asides = _scan(folder)
        used = sum(entry.num_bytes for entry in entries) + sum(aside.num_bytes for aside in asides)
        for entry in entries:
            if used + num_bytes <= limit and shutil.disk_usage(folder).free >= num_bytes:
                return
            with suppress(FileNotFoundError):
                entry.path.unlink()
            logger.debug("evicted %s, %s", entry.path, _size(entry.num_bytes))
            used -= entry.num_bytes
        free = shutil.disk_usage(folder).free
    if used + num_bytes > limit:
        being_written = f"others are writing {_size(used)} and data.cache_gb = {limit_gb:g} allows {_size(limit)}"
        raise OSError(errno.ENOSPC, _no_room(folder, num_bytes, being_written, "raise data.cache_gb"))
    if free < num_bytes:
        why, advice = f"its disk has {_size(free)} free", "choose another with data.cache_dir"
        raise OSError(errno.ENOSPC, _no_room(folder, num_bytes, why, advice))


def locked(path: Path) -> FileLock:
    """The lock under which a file of decoded samples is built; logs that another process holds it."""
    lock = FileLock(path.with_name(path.name + LOCK_SUFFIX))
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        logger.info("another process is decoding into %s: waiting for it", path)
    return lock


def touch(path: Path) -> None:
    """Mark a file as used now; it is no error if it was evicted meanwhile."""
    with suppress(FileNotFoundError):
        now = time.time_ns()  # the kernel's own timestamps have a resolution of some milliseconds
        os.utime(path, ns=(now, now))


def _configured_path(configured: str) -> Path:
    if chosen := configured or os.environ.get("PETSEG_CACHE"):
        return Path(chosen).expanduser().absolute()
    scratch = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - checked above
    return Path(scratch).absolute() / f"petseg-cache-{os.getuid()}"


def _scan(folder: Path) -> tuple[list[_Entry], list[_Entry]]:
    """(entries, least recently used first; asides still being written); deletes the asides of dead processes."""
    entries, asides = [], []
    for entry in _files(folder):
        if not entry.path.name.endswith(ASIDE_SUFFIXES):
            entries.append(entry)
        elif time.time() - entry.last_use_ns / 1e9 < DEAD_ASIDE_AFTER_S:
            asides.append(entry)
        else:
            with suppress(FileNotFoundError):
                entry.path.unlink()
    return sorted(entries, key=lambda entry: entry.last_use_ns), asides


def _files(folder: Path) -> Iterator[_Entry]:
    """The regular files anywhere below the folder, except locks."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and not name.endswith(LOCK_SUFFIX):
                    yield _Entry(status.st_mtime_ns, status.st_size, path)


def _no_room(folder: Path, num_bytes: int, why: str, advice: str) -> str:
    return f"the cache folder {folder} cannot take {_size(num_bytes)} more: {why}; {advice}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3g} GB"
