"""A shard set is built in a hidden folder inside its final one, and moved out whole: killed at any time, run it again.

The staged manifest is the point of no return: before it, a killed pack leaves nothing outside the hidden folder;
after it, the next pack first completes the moves. The final manifest goes last, so there is never one without its
shards.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.manifest import MANIFEST_NAME, SPLITS, Manifest, index_name, load_manifest

STAGING = ".packing"
LOCK = "lock"
OURS = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}(\.tar|\.index\.json)")


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """The hidden folder to build in, empty, and locked against a second pack into the same place.

    Completes what a killed pack had begun to move. Raises ValueError if another pack is at work.
    """
    staging = out / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with (staging / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.fstat(lock.fileno()).st_ino == (staging / LOCK).stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_current = False
        if not is_current:
            raise ValueError(f"another pack is writing into {out}: wait for it, or choose another --out")
        if (staging / MANIFEST_NAME).exists():
            publish(staging, out)
        _empty(staging)
        try:
            yield staging
        finally:
            if not (staging / MANIFEST_NAME).exists():  # else a disk that filled up, or Ctrl-C, came between the moves
                shutil.rmtree(staging)
            with suppress(OSError):
                out.rmdir()  # a pack that failed leaves no empty folder either


def _empty(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def publish(staging: Path, out: Path) -> Manifest:
    """Move a staged set into place, taking the set that is there out of the way; safe to repeat after a kill."""
    manifest = load_manifest(staging)
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    names = [name for shard in manifest.shards for name in (shard.name, index_name(shard.name))]
    for path in shard_files(out):
        if path.name not in names:
            path.unlink()
    for name in names:
        if (staging / name).exists():
            (staging / name).replace(out / name)
    _fsync_folder(out)
    (staging / MANIFEST_NAME).replace(out / MANIFEST_NAME)
    _fsync_folder(out)
    return manifest


def shard_files(out: Path) -> list[Path]:
    """What lies in `out` under names that a pack would take."""
    return sorted(path for path in out.iterdir() if OURS.fullmatch(path.name))


def is_complete(out: Path, manifest: Manifest) -> bool:
    """Whether all files of the set are there in their size; `shards.verify` reads them too."""
    sizes = {path.name: path.stat().st_size for path in shard_files(out)}
    return all(sizes.get(s.name) == s.num_bytes and index_name(s.name) in sizes for s in manifest.shards)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
