"""Marks in the metadata of config fields: how a field takes part in a run's identity (petseg.config.values)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path


def _by_content(weights: str) -> str:
    """The value of model.weights in the identity: a file's sha256 in place of its path.

    Raises ValueError if there is no such file.
    """
    if weights in ("none", "imagenet"):
        return weights
    return _sha256(weights, f"model.weights = {weights!r}", "none, imagenet, or a file")


def _target_by_content(target: str) -> str:
    """The value of data.target in the identity; raises as `_by_content`."""
    if not is_target_file(target):
        return target
    return _sha256(target, f"data.target = {target!r}", "the name of a target, or a .toml file")


def _file_by_content(name: str) -> Callable[[str], str]:
    """The value in the identity of a field that names a weights file of petseg, or nothing."""
    choices = "a weights file, made by `python -m petseg.best`"
    return lambda path: path and _sha256(path, f"{name} = {path!r}", choices)


def is_target_file(target: str) -> bool:
    """Whether data.target names a file that merges classes, and not a target."""
    return target.endswith(".toml")


def _sha256(path: str, name: str, choices: str) -> str:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror} ({choices}; this is {Path.cwd()})") from None
    return f"sha256:{_file_sha256(path, status.st_size, status.st_mtime_ns)}"


@functools.lru_cache
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    """The sha256 of a file; size and mtime are part of the cache's key, so that a rewritten file is read anew."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FREE = {"identity": False}  # does not change the numbers: left out of the identity
LATER = {"later": True}  # was added when runs existed: left out while it has its default
LATER_GROUP = {"later_group": True}  # likewise a group of fields: left out while its `is_off`
BY_CONTENT = {"identity": _by_content}
TARGET_BY_CONTENT = {"identity": _target_by_content}
INIT_BY_CONTENT = {"identity": _file_by_content("model.init")}
TEACHER_BY_CONTENT = {"identity": _file_by_content("distill.teacher")}
