"""Restores a model, or all that learns, from the files of a checkpoint; what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from petseg.run_folder.checkpoint import BUFFERS_NAME, OPTIMIZER_NAME, TRAINING_NAME, Checkpoint, Learner
from petseg.run_folder.checkpoint_files import STATE_NAME, altered, load_tensors, read_state


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights into the (bare) model; its memory format stays.

    Raises Failure that names the file if it is missing or damaged.
    """
    _load_into(model, folder, "model.safetensors")


def _load_into(model: nn.Module, folder: Path, name: str) -> None:
    """Load tensors whose names, shapes and types are the model's; raises Failure that names the file if they are not.

    torch itself would silently turn integers into weights.
    """
    tensors = load_tensors(folder, name)
    wanted = model.state_dict()
    for key, tensor in tensors.items():
        if key in wanted and tensor.dtype != wanted[key].dtype:
            raise altered(folder / name, f"{key} has the type {tensor.dtype}, the model {wanted[key].dtype}")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # names and shapes
        raise altered(folder / name, " ".join(str(error).split())) from None


def load_checkpoint(checkpoint: Checkpoint, learner: Learner) -> None:
    """Restore model, optimizer and averages as they were when the checkpoint was saved.

    Raises Failure that names the file if one is missing or damaged.
    """
    averaged = TRAINING_NAME in checkpoint.state["files"]
    _load_into(learner.model, checkpoint.folder, TRAINING_NAME if averaged else "model.safetensors")
    if learner.ema is not None:
        try:
            learner.ema.load(load_tensors(checkpoint.folder, "model.safetensors"))
        except RuntimeError as error:  # shapes
            raise altered(checkpoint.folder / "model.safetensors", str(error)) from None
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_tensors(checkpoint.folder, OPTIMIZER_NAME).items():
        number, _, fieldname = name.partition(".")
        state.setdefault(int(number) if number.isdecimal() else -1, {})[fieldname] = tensor
    try:
        learner.optimizer.load_state_dict({"state": state, "param_groups": checkpoint.state["optimizer_groups"]})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise altered(checkpoint.folder / STATE_NAME, f"it is of another optimizer: {error!r}") from None
    _fit_moments(checkpoint.folder / OPTIMIZER_NAME, learner.optimizer)


def _fit_moments(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's tensors the memory format of their weights; raises Failure for one of another shape.

    torch does not compare the shapes, and its fused optimizers would write beyond a smaller tensor.
    """
    for parameter, fields in optimizer.state.items():
        for name, tensor in fields.items():
            if not torch.is_tensor(parameter) or tensor.shape != (() if name == "step" else parameter.shape):
                raise altered(path, f"{name} of shape {list(tensor.shape)} fits no weight")
            if tensor.ndim == 4:
                fields[name] = torch.empty_like(parameter).copy_(tensor)


def load_rank_buffers(folder: Path) -> torch.Tensor | None:
    """(world_size, n) the float buffers of each rank when the checkpoint was saved; None if all had the model's."""
    if BUFFERS_NAME not in read_state(folder)["files"]:
        return None
    buffers = load_tensors(folder, BUFFERS_NAME).get("buffers")
    if buffers is None or buffers.ndim != 2 or not len(buffers):
        raise altered(folder / BUFFERS_NAME, "it has no rows of ranks")
    return buffers
