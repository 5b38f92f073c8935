"""The files of one checkpoint: tensors as safetensors, the rest as JSON that records each file's size and CRC-32.

A CRC detects what a disk has lost or altered. It is no signature: whoever can write the folder can write the CRC too.
"""

from __future__ import annotations

import errno
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from shards.cause import Cause
from shards.command import Failure
from shards.files import NotRegular, decode_json, read_regular

FORMAT_VERSION = 3
STATE_NAME = "state.json"


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, int]:
    """Write a safetensors file; returns its size and CRC-32."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # it carries the disk's error as text: "I/O error: ... (os error 28)"
        if match := re.search(r"os error (\d+)|code: (\d+)", str(error)):
            raise OSError(int(match[1] or match[2]), str(error), str(path)) from error
        raise
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors leaves 0600, which shuts out the group
    with path.open("rb") as file:
        crc32 = 0
        while block := file.read(1 << 20):
            crc32 = zlib.crc32(block, crc32)
    return {"num_bytes": path.stat().st_size, "crc32": crc32}


def write_state(content: dict[str, Any], path: Path) -> None:
    content = json.loads(json.dumps(content))  # as it will be read: tuples become lists
    path.write_text(json.dumps({**content, "crc32": _crc32_of(content)}, indent=2))


def _crc32_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def read_state(folder: Path) -> dict[str, Any]:
    """state.json. Raises FileNotFoundError, Failure if it is damaged, ValueError if it has another format."""
    path = folder / STATE_NAME
    try:
        content = decode_json(_read(path))
    except ValueError as error:
        raise damaged(path, str(error)) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has checkpoint format {version}, not {FORMAT_VERSION}: go on with the petseg that wrote it, or "
            "choose another folder with --out"
        )
    if version is None or content.pop("crc32", None) != _crc32_of(content):
        raise damaged(path, "its content does not match its CRC-32")
    files, best = content.get("files"), content.get("best")
    if not isinstance(files, dict) or not isinstance(best, dict) or type(best.get("step")) is not int:
        raise altered(path, "it does not say which files it has, or which step was best")
    return content


def _read_whole(folder: Path, name: str, recorded: dict[str, int]) -> bytes:
    """The bytes of one file of a checkpoint; raises Failure unless size and CRC-32 are the recorded ones."""
    path = folder / name
    try:
        content = _read(path)
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    if len(content) != recorded["num_bytes"]:
        raise damaged(path, f"{len(content)} bytes of {recorded['num_bytes']}")
    if zlib.crc32(content) != recorded["crc32"]:
        raise damaged(path, "its bytes do not match their CRC-32")
    return content


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, follow=False)
    except NotRegular as error:
        raise damaged(path, str(error)) from None
    except OSError as error:
        if error.errno == errno.EIO:
            raise damaged(path, "the disk cannot read it") from None
        raise


def altered(path: Path, why: str) -> Failure:
    """The error for content that petseg would not write although its CRC-32 is right: somebody changed both."""
    return Failure(
        f"{path} was altered after it was saved ({why}): delete {path.parent} to go on from the checkpoint before it",
        Cause.DATA,
    )


def damaged(path: Path, why: str) -> Failure:
    return Failure(f"{path} is damaged ({why}): training goes on from the checkpoint before it", Cause.DATA)


def load_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's file, read once and checked; raises Failure that names a missing or damaged file.

    They are copies: load_file would leave the file mapped while the optimizer holds its tensors, and NFS cannot delete
    a file in use.
    """
    recorded = read_state(folder)["files"].get(name)
    if recorded is None:
        raise altered(folder / STATE_NAME, f"it does not list {name}")
    try:
        return load(_read_whole(folder, name, recorded))
    except (SafetensorError, KeyError, ValueError) as error:
        raise altered(folder / name, f"its tensors cannot be read: {error!r}") from None


def verify(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are all undamaged; raises Failure that names the first that is not."""
    state = read_state(folder)
    for name, recorded in state["files"].items():
        _read_whole(folder, name, recorded)
    return state
