"""Where a run stands: saved after each epoch and within, restored by the next life."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from petseg.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_rank_buffers,
    newest_loadable,
    save_checkpoint,
)
from petseg.checkpoint_files import STATE_NAME, altered
from petseg.data.ledger import Count
from petseg.run import EpochSoFar, Run
from petseg.run_folder import CHECKPOINTS_NAME

logger = logging.getLogger(__name__)


def resume(run: Run) -> bool:
    """Restore the newest checkpoint of the run's folder; False if there is none."""
    newest = newest_of_all(run)
    if newest is None:
        return False
    load_checkpoint(newest, run.bare_model, run.optimizer, run.ema)
    try:
        restore_place(run, newest)
    except (KeyError, TypeError, AttributeError) as error:
        raise altered(newest.folder / STATE_NAME, repr(error)) from None
    if (buffers := load_rank_buffers(newest.folder)) is not None:  # of another number of ranks: their mean
        own = buffers[run.rank] if len(buffers) == run.world_size else buffers.mean(dim=0)
        nn.utils.vector_to_parameters(own.to(run.accelerator.device), run.float_buffers())
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(newest.state["scaler"])
    if run.accelerator.is_main_process:
        logger.info(
            "resumed %s after epoch %d of %d and %d steps",
            run.folder, run.epoch, run.epochs, run.so_far.steps,
        )  # fmt: skip
    return True


def restore_place(run: Run, newest: Checkpoint) -> None:
    """How far the run had come; raises KeyError, TypeError or AttributeError where the state does not say it."""
    if run.config.train.budget_min:
        run.total_steps = int(newest.state["total_steps"])
    run.epoch, run.best = int(newest.state["epoch"]), newest.state["best"]
    so_far = newest.state["so_far"]
    run.so_far = EpochSoFar(**so_far | {"sums": tuple(map(tuple, so_far["sums"])), "count": Count(**so_far["count"])})


def newest_of_all(run: Run) -> Checkpoint | None:
    """The newest whole checkpoint, as the main process finds it: damaged ones are set aside by it alone."""
    folder = run.folder / CHECKPOINTS_NAME
    found = newest_loadable(folder, set_aside=True) if run.accelerator.is_main_process else None
    (step,) = broadcast_object_list([found.step if found else None])
    if run.accelerator.is_main_process or step is None:
        return found
    return next(checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step == step)


def save_epoch(run: Run, row: dict[str, float]) -> None:
    """Note the epoch, and whether it is the best so far, in a checkpoint."""
    run.epoch = int(row["epoch"])
    if row["val/dice"] > run.best["val/dice"]:
        run.best = {name: row[name] for name in ("step", "epoch", "val/dice")}
    save(run, rank_buffers=None)


def save_within(run: Run, so_far: EpochSoFar) -> None:
    """Note how far the epoch has come in a checkpoint, each rank's BatchNorm statistics included."""
    run.so_far = so_far
    buffers = run.float_buffers()
    own = nn.utils.parameters_to_vector(buffers).unsqueeze(0) if buffers else None
    save(run, rank_buffers=None if own is None else run.accelerator.gather(own))


def save(run: Run, rank_buffers: torch.Tensor | None) -> None:
    run.require_newest()
    run.saved_at = time.monotonic()
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        state = {
            "epoch": run.epoch,
            "total_steps": run.total_steps,
            "so_far": asdict(run.so_far),
            "best": run.best,
            "scaler": scaler.state_dict() if scaler else None,
        }
        folder = run.folder / CHECKPOINTS_NAME
        save_checkpoint(folder, run.done_steps, run.bare_model, run.optimizer, state, rank_buffers, run.ema)
    run.accelerator.wait_for_everyone()
