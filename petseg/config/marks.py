"""Marks in the metadata of config fields: how a field takes part in a run's identity (petseg.config.values)."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def _by_content(weights: str) -> str:
    """The value of model.weights in the identity: a file's sha256 in place of its path.

    Raises ValueError if there is no such file.
    """
    if weights in ("none", "imagenet"):
        return weights
    try:
        status = Path(weights).stat()
    except OSError as error:
        raise ValueError(
            f"model.weights = {weights!r}: {error.strerror} (none, imagenet, or a file; this is {Path.cwd()})"
        ) from None
    return f"sha256:{_file_sha256(weights, status.st_size, status.st_mtime_ns)}"


@functools.lru_cache
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    """The sha256 of a file; size and mtime are part of the cache's key, so that a rewritten file is read anew."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FREE = {"identity": False}  # does not change the numbers: left out of the identity
LATER = {"later": True}  # was added when runs existed: left out while it has its default
BY_CONTENT = {"identity": _by_content}
