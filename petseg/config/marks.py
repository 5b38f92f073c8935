"""How a field of the config takes part in a run's identity: marks in its metadata, read by petseg.config.values."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def _by_content(weights: str) -> str:
    """What stands for model.weights in the identity: a file's sha256 in place of its path.

    Raises ValueError if there is no such file.
    """
    if weights in ("none", "imagenet"):
        return weights
    try:
        found = Path(weights).stat()
    except OSError as error:
        raise ValueError(
            f"model.weights = {weights!r}: {error.strerror} (none, imagenet, or a file; this is {Path.cwd()})"
        ) from None
    return f"sha256:{_file_sha256(weights, found.st_size, found.st_mtime_ns)}"


@functools.lru_cache
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    """Of a file's content; size and mtime make one that was written anew another."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FREE = {"identity": False}  # does not change the numbers: left out
LATER = {"later": True}  # came when runs existed: left out while it has its default
BY_CONTENT = {"identity": _by_content}
