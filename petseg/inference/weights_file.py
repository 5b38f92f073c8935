"""Weights files: safetensors whose header carries all that a prediction needs (petseg.inference.header).

A file that could be a stranger's is compared with the model that its header describes, built without memory on the
device meta, before any tensor is read: the names, shapes and types of all tensors, and the size of the file. Nothing in
it is executed or fetched.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from petseg.inference.header import Header, NewerFormat, from_json, to_json
from petseg.models.networks import ENTRY, build_networks
from shards.files import NotRegular, decode_json, open_regular, parse_json, write_whole

SUFFIX = ".safetensors"
METADATA = "__metadata__"  # of safetensors
MAX_HEADER_BYTES = 32 << 20  # the largest encoder of timm has some thousand tensors of about 150 bytes
MAKE_ONE = "make one with `python -m petseg.best`"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def build_network(header: Header) -> nn.Module:
    """The model that a header describes, with fresh weights; torch's random state stays as it is."""
    with torch.random.fork_rng():
        return build_networks(header.models, len(header.classes), header.image_size_px).eval()


def save_weights(header: Header, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a weights file, which appears whole."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {ENTRY: json.dumps(to_json(header))}))


def read_header(path: Path) -> Header:
    """What a weights file says of its model, without its tensors; raises as `load_model`."""
    return _read(path, lambda file: _header_of(path, file)[0])


def load_model(path: Path) -> tuple[Header, nn.Module]:
    """A weights file's header and its model, on the CPU and ready to predict.

    Raises ValueError in one line for a file that is missing, damaged, of a later petseg, or no weights file at all.
    """
    header, tensors = _read(path, lambda file: _checked(path, file))
    model = build_network(header)
    model.load_state_dict(tensors)
    return header, model


def _read(path: Path, read: Callable[[BufferedReader], Any]) -> Any:
    try:
        with open_regular(path) as file:
            return read(file)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file (from {Path.cwd()}); {MAKE_ONE}") from None
    except NotRegular as error:
        raise ValueError(f"{error}: {MAKE_ONE}") from None


def _checked(path: Path, file: BufferedReader) -> tuple[Header, Tensors]:
    """Header and tensors; the latter are read once they are known to be those of the model."""
    header, entries, start = _header_of(path, file)
    try:
        with torch.device("meta"):
            wanted = build_network(header).state_dict()
    except (ValueError, RuntimeError, OverflowError, TypeError) as error:
        raise ValueError(f"{path}: its model cannot be built ({_line(error)})") from None
    if problem := _difference(wanted, entries):
        raise ValueError(f"{path} is damaged ({problem}): {MAKE_ONE}")
    size = file.seek(0, 2)
    if size - start != (needed := sum(tensor.nbytes for tensor in wanted.values())):
        raise ValueError(f"{path} is damaged ({size - start:,} bytes of tensors, not {needed:,}): copy it again")
    file.seek(0)
    try:
        return header, load(file.read(size))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({_line(error)}): copy it again") from None


def _header_of(path: Path, file: BufferedReader) -> tuple[Header, dict[str, Any], int]:
    """The header, the entries of the tensors by name, and where these begin in the file."""
    size = file.seek(0, 2)
    file.seek(0)
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else math.inf
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"{path} is damaged, or no safetensors file: {MAKE_ONE}")
    try:
        entries = decode_json(file.read(int(length)))
    except ValueError as error:  # of UnicodeDecodeError's kind too
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}): {MAKE_ONE}") from None
    metadata = entries.pop(METADATA, None) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get(ENTRY), str):
        raise ValueError(f"{path} was not written by petseg: {MAKE_ONE}")
    try:
        return from_json(parse_json(metadata[ENTRY], path)), entries, 8 + int(length)
    except NewerFormat as error:
        raise ValueError(f"{path} was written by a later petseg ({error}): update petseg") from None
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path} is damaged ({text}): {MAKE_ONE}") from None


def _difference(wanted: Mapping[str, torch.Tensor], entries: Mapping[str, Any]) -> str:
    """How the tensors that a file announces differ from those of its model; empty if they do not."""
    if missing := [name for name in wanted if name not in entries]:
        return f"{missing[0]} is missing"
    if unknown := [name for name in entries if name not in wanted]:
        return f"{unknown[0]:.80} is no tensor of its model"
    for name, tensor in wanted.items():
        entry = entries[name] if isinstance(entries[name], dict) else {}
        if entry.get("shape") != list(tensor.shape) or entry.get("dtype") != _DTYPES.get(tensor.dtype):
            found = f"{entry.get('dtype')!s:.20} {entry.get('shape')!s:.60}"
            return f"{name} is {found}, not {_DTYPES.get(tensor.dtype)} {list(tensor.shape)}"
    return ""


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
