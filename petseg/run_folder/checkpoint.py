"""Checkpoints: folders of safetensors and JSON that appear whole or not at all, and go whole.

    checkpoints/step-00000104/model.safetensors       weights and BatchNorm buffers, to evaluate and to use
                              training.safetensors    only where those are averages: the weights that training resumes
                              optimizer.safetensors   the optimizer's tensors, named "parameter.field"
                              buffers.safetensors     only within an epoch: BatchNorm's statistics of each rank
                              state.json              the rest: epoch, step, best so far, optimizer groups, and the
                                                      size and CRC-32 of each file, its own included
    checkpoints/step-00000104.1/         the same step saved again by a later attempt: the highest number counts
    checkpoints/.step-00000104.tmp/      being written or deleted; the next save removes what a kill leaves behind
    checkpoints/unusable-step-00000104/  set aside at a resume: it, or the best checkpoint that it names, is damaged

No pickle is read or written: a checkpoint from a stranger can be wrong, but it cannot run code.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petseg.optim.ema import Ema
from petseg.run_folder.checkpoint_files import (
    FORMAT_VERSION,
    STATE_NAME,
    damaged,
    read_state,
    verify,
    write_state,
    write_tensors,
)
from petseg.run_folder.layout import CHECKPOINTS_NAME
from shards.cause import Cause
from shards.command import Failure
from shards.files import fsync

KEEP_NEWEST = 2
TRAINING_NAME, OPTIMIZER_NAME, BUFFERS_NAME = "training.safetensors", "optimizer.safetensors", "buffers.safetensors"
_NAME = re.compile(r"step-(\d{8})(?:\.(\d+))?")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, and what its state.json says."""

    folder: Path
    step: int
    state: dict[str, Any]


@dataclass(frozen=True)
class Learner:
    """What learns: a (bare) model, its optimizer and, where there is one, the average of its weights."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first, one per step; damaged tensors are found when they are loaded.

    Skips folders without state.json, folders that another process deletes meanwhile and, with a warning, those with a
    damaged state.json. Raises ValueError for a checkpoint of another format.
    """
    by_step: dict[int, Checkpoint] = {}
    for step, _, path in _step_folders(folder):
        try:
            by_step[step] = Checkpoint(path, step, read_state(path))
        except FileNotFoundError:
            continue
        except Failure as error:
            logger.warning("passed over: %s", error)
    return list(by_step.values())


def choose_checkpoint(run: Path, weights: str) -> Checkpoint:
    """A run's best or last checkpoint. Raises ValueError if there is none yet, Failure if the best one is missing."""
    checkpoints = list_checkpoints(run / CHECKPOINTS_NAME)
    if not checkpoints:
        raise ValueError(f"{run} has no checkpoint yet: train first, or wait for its first epoch")
    if weights == "last":
        return checkpoints[-1]
    best_step = checkpoints[-1].state["best"]["step"]
    best = next((checkpoint for checkpoint in checkpoints if checkpoint.step == best_step), None)
    if best is None:
        raise Failure(
            f"{run / CHECKPOINTS_NAME} lacks the best checkpoint, step {best_step}: take --weights last", Cause.DATA
        )
    return best


def newest_loadable(folder: Path, set_aside: bool = False) -> Checkpoint | None:
    """The newest checkpoint that a run can resume from: neither it nor the best one that it names is damaged.

    None if there is none: then the run starts from the beginning. A warning says why each newer one is unusable.
    set_aside: rename those to unusable-step-N, so that they are not kept in place of new ones; for the one process of
    a run that saves. Raises ValueError for a checkpoint of another format.
    """
    chosen, unusable = None, []
    for step, _, path in reversed(_step_folders(folder)):
        try:
            chosen = Checkpoint(path, step, verify(path))
            best_step = chosen.state["best"]["step"]
            if best_step not in (0, step):  # 0 = no epoch has been measured yet
                _verify_best(folder, best_step)
            break
        except FileNotFoundError:  # no state.json
            continue
        except Failure as error:
            chosen = None
            unusable.append(path)
            logger.warning("cannot go on from %s: %s", path.name, error)
    for path in unusable if set_aside else ():
        aside = path.with_name(f"unusable-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        logger.warning("%s is set aside as %s", path, aside.name)
    return chosen


def save_checkpoint(
    folder: Path, step: int, learner: Learner, state: dict[str, Any], rank_buffers: torch.Tensor | None = None
) -> None:
    """Write `folder/step-N` aside, fsync, rename; then delete all but the two newest and the best of each.

    state: what else a resume needs, JSON; state["best"]["step"] names the best checkpoint, which is kept.
    rank_buffers: (world_size, n) the float buffers of each rank, where they differ
    Old checkpoints are deleted only after the new one is complete: a kill, or a full disk, loses nothing. Raises
    OSError that names the folder and the bytes needed where they do not fit; nothing half-written stays then.
    """
    files, groups = _tensors_by_file(learner, rank_buffers)
    content = {"format_version": FORMAT_VERSION, "step": step, **state, "optimizer_groups": groups}
    target = _free_name(folder, step)
    aside = _hidden(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir()
        written = {name: write_tensors(tensors, aside / name) for name, tensors in files.items()}
        write_state(content | {"files": written}, aside / STATE_NAME)
        for path in (*aside.iterdir(), aside):
            fsync(path)
        aside.rename(target)
        for path in (folder, folder.parent):  # the first checkpoint of a run: its folder is new too
            fsync(path)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise _no_space(error, folder, files) from error
        raise
    _prune(folder, step)


def _tensors_by_file(
    learner: Learner, rank_buffers: torch.Tensor | None
) -> tuple[dict[str, dict[str, torch.Tensor]], list[dict[str, Any]]]:
    """The tensors of each safetensors file, and the optimizer's parameter groups."""
    weights, optimizer = learner.model.state_dict(), learner.optimizer.state_dict()
    moments = {
        f"{number}.{name}": torch.as_tensor(value)
        for number, fields in optimizer["state"].items()
        for name, value in fields.items()
    }
    files = {"model.safetensors": weights, OPTIMIZER_NAME: moments}
    if learner.ema is not None:
        files |= {"model.safetensors": learner.ema.state_dict(learner.model), TRAINING_NAME: weights}
    if rank_buffers is not None:
        files[BUFFERS_NAME] = {"buffers": rank_buffers}
    return files, optimizer["param_groups"]


def _step_folders(folder: Path) -> list[tuple[int, int, Path]]:
    """(step, how many times it was saved before, folder), in that order."""
    matches = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("step-*")]
    return sorted((int(match[1]), int(match[2] or 0), path) for path, match in matches if match)


def _free_name(folder: Path, step: int) -> Path:
    """An unused name: an earlier attempt's checkpoint of the same step is deleted only once the new one is complete."""
    again = [number + 1 for other, number, _ in _step_folders(folder) if other == step]
    return folder / (f"step-{step:08d}.{again[-1]}" if again else f"step-{step:08d}")


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _verify_best(folder: Path, step: int) -> None:
    paths = [path for other, _, path in _step_folders(folder) if other == step]
    if not paths:
        raise Failure(f"the best checkpoint so far, of step {step}, is gone", Cause.DATA)
    try:
        verify(paths[-1])
    except FileNotFoundError as error:
        raise damaged(Path(error.filename), "it is missing") from None


def _no_space(error: OSError, folder: Path, files: Mapping[str, Mapping[str, torch.Tensor]]) -> OSError:
    needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    return OSError(
        error.errno,
        f"{os.strerror(error.errno or 0)}: a checkpoint of {needed:,} bytes does not fit into {folder} ({free:,} bytes "
        "are free on that disk, your quota aside); the checkpoints before it are whole: make room, and run the same "
        "command to go on",
    )


def _prune(folder: Path, saved_step: int) -> None:
    """Delete the checkpoints before `saved_step` except the previous one and the best checkpoints that the two name.

    The previous one's best is kept too, so that the run can resume from the previous one if the newest is damaged.
    """
    checkpoints = list_checkpoints(folder)
    oldest_kept = [c.step for c in checkpoints if c.step <= saved_step][-KEEP_NEWEST:][0]
    best_steps = {c.state["best"]["step"] for c in checkpoints if c.step >= oldest_kept}
    kept = {c.folder for c in checkpoints if c.step >= oldest_kept or c.step in best_steps}
    for step, _, path in _step_folders(folder):
        if step <= saved_step and path not in kept:
            _delete(path)


def _delete(path: Path) -> None:
    """Hide a checkpoint in one move, then delete it; each save tries again to delete what could not be deleted."""
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        shutil.rmtree(path.rename(_hidden(path)), ignore_errors=True)
