"""A run's progress: saved after each epoch and within epochs, restored by the next attempt."""

from __future__ import annotations

import logging
import time

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from petseg.run.parts import Parts
from petseg.run.progress import PartialEpoch
from petseg.run.run import Run
from petseg.run_folder.checkpoint import BUFFERS_NAME, Checkpoint, list_checkpoints, newest_loadable, save_checkpoint
from petseg.run_folder.checkpoint_files import STATE_NAME, altered
from petseg.run_folder.layout import CHECKPOINTS_NAME
from petseg.run_folder.restore import load_checkpoint, load_rank_buffers

logger = logging.getLogger(__name__)


def resume(run: Run) -> bool:
    """Restore the newest checkpoint of the run's folder; False if there is none."""
    parts, progress = run.parts, run.progress
    newest = newest_of_all(parts)
    if newest is None:
        return False
    load_checkpoint(newest, parts.learner)
    try:
        progress.from_state(newest.state, parts.config.train.budget_min)
    except (KeyError, TypeError, AttributeError) as error:
        raise altered(newest.folder / STATE_NAME, repr(error)) from None
    if (buffers := load_rank_buffers(newest.folder)) is not None:  # saved by another number of ranks: take the mean
        own = buffers[parts.rank] if len(buffers) == parts.world_size else buffers.mean(dim=0)
        if len(own) != (wanted := sum(buffer.numel() for buffer in parts.float_buffers())):
            raise altered(newest.folder / BUFFERS_NAME, f"{len(own)} numbers of each rank, not {wanted}")
        nn.utils.vector_to_parameters(own.to(parts.device), parts.float_buffers())
    if parts.accelerator.scaler is not None:
        parts.accelerator.scaler.load_state_dict(newest.state["scaler"])
    if parts.is_main:
        logger.info(
            "resumed %s after epoch %d of %d and %d steps",
            parts.folder, progress.epoch, progress.epochs, progress.partial.steps,
        )  # fmt: skip
    return True


def newest_of_all(parts: Parts) -> Checkpoint | None:
    """The newest undamaged checkpoint, chosen by the main process, which alone sets damaged ones aside."""
    folder = parts.folder / CHECKPOINTS_NAME
    newest = newest_loadable(folder, set_aside=True) if parts.is_main else None
    (step,) = broadcast_object_list([newest.step if newest else None])
    if parts.is_main or step is None:
        return newest
    return next(checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step == step)


def save_epoch(run: Run, row: dict[str, float]) -> None:
    """Save a checkpoint after an epoch, which may be the best so far."""
    run.progress.finish_epoch(int(row["epoch"]), int(row["step"]), row["val/dice"])
    save(run, rank_buffers=None)


def save_within(run: Run, partial: PartialEpoch) -> None:
    """Save a checkpoint within an epoch, with each rank's BatchNorm statistics."""
    run.progress.partial = partial
    buffers = run.parts.float_buffers()
    own = nn.utils.parameters_to_vector(buffers).unsqueeze(0) if buffers else None
    save(run, rank_buffers=None if own is None else run.parts.accelerator.gather(own))


def save(run: Run, rank_buffers: torch.Tensor | None) -> None:
    """Write a checkpoint on the main process while the others wait."""
    parts = run.parts
    run.attempt.require_newest()
    run.attempt.saved_at = time.monotonic()
    if parts.is_main:
        scaler = parts.accelerator.scaler
        state = run.progress.to_state() | {"scaler": scaler.state_dict() if scaler else None}
        save_checkpoint(parts.folder / CHECKPOINTS_NAME, run.progress.done_steps, parts.learner, state, rank_buffers)
    parts.accelerator.wait_for_everyone()
