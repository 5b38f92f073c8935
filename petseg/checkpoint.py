"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

    checkpoints/step-00000104/model.safetensors       weights and BatchNorm buffers
                              optimizer.safetensors   the optimizer's tensors, named "parameter.field"
                              buffers.safetensors     only within an epoch: BatchNorm's statistics of each rank
                              state.json              the rest: epoch, step, best so far, optimizer groups

No pickle is read or written: a checkpoint from a stranger can be wrong, but it cannot run code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT_VERSION = 2
KEEP_NEWEST = 2
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, and what its state.json says."""

    folder: Path
    step: int
    state: dict[str, Any]


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The whole checkpoints of a run, oldest first; half-written ones from an earlier life are passed over."""
    found = []
    for path in sorted(folder.glob("step-*")):
        match = _NAME.fullmatch(path.name)
        if match and (path / "state.json").exists():
            state = json.loads((path / "state.json").read_text())
            if state.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"{path} has checkpoint format {state.get('format_version')}, not {FORMAT_VERSION}")
            found.append(Checkpoint(path, int(match[1]), state))
    return found


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    rank_buffers: torch.Tensor | None = None,
) -> None:
    """Write `folder/step-N` aside, fsync, rename; then delete all but the two newest and the best.

    rank_buffers: (world_size, n) the float buffers of each rank, where they differ
    state: what else a resume needs, JSON; state["best"]["step"] names the best checkpoint, which is kept.
    Old checkpoints go only after the new one stands, so that a full disk loses nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        tensors, groups = _flatten_optimizer(optimizer)
        save_file(_on_cpu(model.state_dict()), aside / "model.safetensors")
        save_file(_on_cpu(tensors), aside / "optimizer.safetensors")
        if rank_buffers is not None:
            save_file(_on_cpu({"buffers": rank_buffers}), aside / "buffers.safetensors")
        content = {"format_version": FORMAT_VERSION, "step": step, **state, "optimizer_groups": groups}
        (aside / "state.json").write_text(json.dumps(content, indent=2))
        for path in (*aside.iterdir(), aside):
            _fsync(path)
        shutil.rmtree(target, ignore_errors=True)  # the same step of an earlier life: bit for bit the same
        aside.replace(target)
        _fsync(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _prune(folder, best_step=state["best"]["step"])


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights into the (unwrapped) model; its memory format stays."""
    model.load_state_dict(load_file(folder / "model.safetensors"))


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore model and optimizer as they were when the checkpoint was saved."""
    load_weights(checkpoint.folder, model)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(checkpoint.folder / "optimizer.safetensors").items():
        number, _, fieldname = name.partition(".")
        state.setdefault(int(number), {})[fieldname] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": checkpoint.state["optimizer_groups"]})
    for (
        parameter,
        fields,
    ) in optimizer.state.items():  # moments in the parameter's memory format, as in a fresh run
        for name, tensor in fields.items():
            if torch.is_tensor(tensor) and tensor.shape == parameter.shape and tensor.ndim == 4:
                fields[name] = torch.empty_like(parameter).copy_(tensor)


def load_rank_buffers(folder: Path) -> torch.Tensor | None:
    """(world_size, n) the float buffers of each rank when the checkpoint was saved; None if all had the model's."""
    path = folder / "buffers.safetensors"
    return load_file(path)["buffers"] if path.exists() else None


def _flatten_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    content = optimizer.state_dict()
    tensors = {
        f"{number}.{name}": torch.as_tensor(value)
        for number, fields in content["state"].items()
        for name, value in fields.items()
    }
    return tensors, content["param_groups"]


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _prune(folder: Path, best_step: int) -> None:
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints[:-KEEP_NEWEST]:
        if checkpoint.step != best_step:
            shutil.rmtree(checkpoint.folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
