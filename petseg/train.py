"""Train one model on a shard set. The same command again goes on where it stopped, or says that it is finished.

python petseg/train.py --data.shards data/shards --model.arch resnet34_unet --train.epochs 20
accelerate launch --config_file slurm/accelerate/eight_gpu.yaml petseg/train.py --train.mixed-precision bf16
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.table import Table
from torch import nn

from petseg import interrupt
from petseg.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_rank_buffers,
    newest_loadable,
    save_checkpoint,
)
from petseg.config import RunConfig, config_to_dict, trial_id, with_values
from petseg.data.ledger import Count, Ledger
from petseg.data.loader import Batch
from petseg.data.plan import global_batch
from petseg.data.store import open_store, read_manifest
from petseg.evaluate import measure
from petseg.finish import finish
from petseg.lives import Heartbeat, begin_life
from petseg.metrics import count_pixels, dice_of, iou_of
from petseg.optim import set_learning_rate
from petseg.progress import TrainProgress
from petseg.run import EpochSoFar, Run, build_run
from petseg.run_folder import CHECKPOINTS_NAME, Result, claim_folder, load_config, load_overrides, load_result
from petseg.tracking import RunName, Tracker
from shards.command import OK, Failure, Interrupted, run_command
from shards.manifest import write_whole

logger = logging.getLogger(__name__)

Row = dict[str, float]


def train(
    config: RunConfig,
    folder: Path,
    name: RunName | None = None,
    world_size: int = 0,
    max_without_progress: int = 0,
) -> Result:
    """Run `config` in `folder`, or go on from its newest checkpoint; called by every process of the run.

    name: how wandb shows the run
    world_size: how many processes there must be, 0 = any
    max_without_progress: so many starts in a row may come no further than the ones before, 0 = any number
    Raises ValueError for a folder that holds another run, Failure for damaged data or a loss that is not finite,
    Interrupted where a signal asked to stop, or where another process has taken the run over.
    """
    store = open_store(config.data.shards, config.data.cache_dir, config.data.cache_gb)
    manifest = store.manifest
    claim_folder(config, manifest.hash, folder)
    if (result := load_result(folder)) is not None:
        logger.info("%s is finished", folder)
        store.close()
        return result
    if overrides := load_overrides(folder):
        logger.warning("%s runs with %s, as its overrides.json says", folder, overrides)
        config = with_values(config, overrides)
    splits = ["train", "val", *(["test"] if config.train.test and "test" in manifest.splits else [])]
    run = build_run(config, store, folder, world_size, splits)
    resume(run)
    name = name or RunName(id=load_config(folder)["trial_id"], tags=(config.model.arch, config.augment.policy))
    main = run.accelerator.is_main_process
    if main:
        run.life = begin_life(folder, run.done_steps, max_without_progress)
    tracker = Tracker(folder, config.tracking, name, config_to_dict(config), run.epoch) if main else None
    try:
        with TrainProgress(config.train.epochs, run.steps_per_epoch, run.done_steps, main) as progress:
            for epoch in range(run.epoch + 1, config.train.epochs + 1):
                row, stop = train_epoch(run, epoch, progress)
                row = {"epoch": epoch, "step": epoch * run.steps_per_epoch} | row | validate(run)
                progress.epoch_done(row)
                run.require_newest()
                if tracker:
                    tracker.log(row)
                save_epoch(run, row)
                if stop and epoch < config.train.epochs:
                    raise interrupted(run, stop)
        result = finish(run, tracker)
    except BaseException:
        if tracker:
            tracker.finish({}, exit_code=1)
        raise
    finally:
        run.close()
    return result


def resume(run: Run) -> None:
    """Restore the newest checkpoint of the run's folder, if there is one."""
    newest = newest_of_all(run)
    if newest is None:
        return
    load_checkpoint(newest, run.bare_model, run.optimizer)
    run.epoch, run.best = newest.state["epoch"], newest.state["best"]
    so_far = newest.state["so_far"]
    run.so_far = EpochSoFar(**so_far | {"sums": tuple(map(tuple, so_far["sums"])), "count": Count(**so_far["count"])})
    if (buffers := load_rank_buffers(newest.folder)) is not None:  # of another number of ranks: their mean
        own = buffers[run.rank] if len(buffers) == run.world_size else buffers.mean(dim=0)
        nn.utils.vector_to_parameters(own.to(run.accelerator.device), run.float_buffers())
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(newest.state["scaler"])
    if run.accelerator.is_main_process:
        logger.info(
            "resumed %s after epoch %d of %d and %d steps",
            run.folder, run.epoch, run.config.train.epochs, run.so_far.steps,
        )  # fmt: skip


def newest_of_all(run: Run) -> Checkpoint | None:
    """The newest whole checkpoint, as the main process finds it: damaged ones are set aside by it alone."""
    folder = run.folder / CHECKPOINTS_NAME
    found = newest_loadable(folder, set_aside=True) if run.accelerator.is_main_process else None
    (step,) = broadcast_object_list([found.step if found else None])
    if run.accelerator.is_main_process or step is None:
        return found
    return next(checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step == step)


class Stop(enum.IntEnum):
    """What signals ask for, over all ranks."""

    NO = 0
    SAVE = 1
    REQUEUE = 2


def train_epoch(run: Run, epoch: int, progress: TrainProgress) -> tuple[Row, Stop]:
    """One pass over the train split, or the rest of it; and what signals asked for near its end.

    The row has means over the samples, speed, the share of time spent waiting for data, and the ledger's coverage.
    Raises Interrupted, with the steps saved, if a rank is told to stop within the epoch; Failure, on all ranks, for a
    loss that is not finite, for more unreadable samples than allowed, and for a ledger that does not close.
    """
    run.model.train()
    main, device, budget = run.accelerator.is_main_process, run.accelerator.device, run.config.data.max_lost_samples
    before = run.so_far
    ledger = Ledger(before.count if main else Count())
    sums = torch.tensor(before.sums_of(run.rank, run.world_size), dtype=torch.float64, device=device)
    heartbeat = Heartbeat(run.folder, run.config.train.epochs, run.steps_per_epoch) if main else None
    start, waited_s = time.perf_counter() - before.seconds, before.waited_s
    batches = run.train_batches(epoch, before.steps)
    for step in range(before.steps, run.steps_per_epoch):
        asked = time.perf_counter()
        parts = take_step(batches)
        waited_s += time.perf_counter() - asked
        for batch in parts:
            ledger.add(batch)
        train_step(run, epoch, step, parts, sums)
        is_last = step + 1 == run.steps_per_epoch
        if (step + 1) % run.config.train.log_every == 0 or is_last:
            # the only places where the host waits for the device and the ranks for each other's numbers
            flags = [ledger.count.lost, interrupt.requested(), interrupt.requeue_requested(), main and run.save_due]
            shared = torch.cat([sums, torch.tensor(flags, dtype=torch.float64, device=device)])
            samples, loss, dice, iou, lost, stops, requeues, due = run.accelerator.reduce(shared).tolist()
            stop = Stop.REQUEUE if requeues else Stop.SAVE if stops else Stop.NO
            seconds = time.perf_counter() - start
            if lost > budget:
                raise ledger.failure("train", budget)
            if not math.isfinite(loss):
                raise not_finite(run, epoch, step)
            if heartbeat:
                heartbeat.beat(epoch, step + 1, samples / seconds)
            if (stop or due) and not is_last:
                every_rank = tuple(map(tuple, run.accelerator.gather(sums.unsqueeze(0)).tolist()))
                count = ledger.gather(run.accelerator)
                save_within(run, EpochSoFar(step + 1, every_rank, count, seconds, waited_s))
            if stop and not is_last:
                raise interrupted(run, stop)
            progress.update((epoch - 1) * run.steps_per_epoch + step + 1, loss / samples, samples / seconds)
    run.so_far = EpochSoFar()
    count = ledger.gather(run.accelerator)
    count.check(run.manifest.splits["train"], "train")
    row = {
        "train/loss": loss / samples,
        "train/dice": dice / samples,
        "train/iou": iou / samples,
        "lr": run.learning_rate(epoch, run.steps_per_epoch - 1),
        "data/coverage": count.coverage(run.manifest.splits["train"]),
        "perf/seconds": seconds,
        "perf/images_per_s": samples / seconds,
        "perf/data_wait": waited_s / seconds,
        "perf/headroom": samples / (seconds - waited_s),
    }
    return row, stop


def interrupted(run: Run, stop: Stop) -> Interrupted:
    steps = f" and {run.so_far.steps} steps" if run.so_far.steps else ""
    message = f"{run.folder} is saved up to epoch {run.epoch}{steps}: run the same command to go on"
    return Interrupted(message, requeue=stop is Stop.REQUEUE)


def take_step(batches: Iterator[Batch]) -> list[Batch]:
    """The batches of one optimizer step."""
    parts = [next(batches)]
    while not parts[-1].plan.last:
        parts.append(next(batches))
    return parts


def train_step(run: Run, epoch: int, step: int, parts: Sequence[Batch], sums: torch.Tensor) -> None:
    """Forward and backward over a step's parts, one optimizer step; adds to `sums` without waiting for the device.

    Each sample counts 1 / (samples of the step over all ranks): DDP's mean over ranks is undone, so that neither a
    smaller last batch nor another world size changes its weight.
    """
    set_learning_rate(run.optimizer, run.learning_rate(epoch, step))
    for batch in parts:
        image, target = run.inputs(batch, epoch)
        exchange_later = contextlib.nullcontext() if batch.plan.last else run.accelerator.no_sync(run.model)
        with exchange_later:
            logits = run.model(image)  # (B, 2, H, W)
            losses = run.loss(logits, target)  # (B,)
            weight = batch.weight.to(losses.device, non_blocking=True)
            run.accelerator.backward((losses * weight).sum() * (run.world_size / batch.plan.step_samples))
        counts = count_pixels(logits.detach(), target)
        columns = [torch.ones_like(losses), losses.detach(), dice_of(counts), iou_of(counts)]
        sums += torch.stack(columns).double() @ weight.double()
    if run.config.optim.grad_clip:
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.optim.grad_clip)
    run.optimizer.step()
    run.optimizer.zero_grad()


def not_finite(run: Run, epoch: int, step: int) -> Failure:
    """The error for a loss that is NaN or infinite; the keys of the batches it may come from are written down."""
    every = run.config.train.log_every
    first = step - step % every
    order, data = run.order(epoch), run.splits["train"]
    steps = {
        s: [data.key(int(i)) for i in global_batch(order, run.config.train.batch_size, s)]
        for s in range(first, step + 1)
    }
    path = run.folder / "not_finite.json"
    if run.accelerator.is_main_process:
        write_whole(path, json.dumps({"epoch": epoch, "keys_by_step": steps}, indent=2) + "\n")
    return Failure(
        f"the loss is not finite in steps {first}-{step} of epoch {epoch}: try a lower optim.lr, optim.grad_clip 1 or "
        f"train.mixed_precision no; the keys of those batches are in {path}"
    )


def validate(run: Run) -> Row:
    run.sync_buffers()
    return measure(run, "val").summary("val")


def save_epoch(run: Run, row: Row) -> None:
    """Note the epoch, and whether it is the best so far, in a checkpoint."""
    run.epoch = int(row["epoch"])
    if row["val/dice"] > run.best["val/dice"]:
        run.best = {name: row[name] for name in ("step", "epoch", "val/dice")}
    save(run, rank_buffers=None)


def save_within(run: Run, so_far: EpochSoFar) -> None:
    """Note how far the epoch has come in a checkpoint, each rank's BatchNorm statistics included."""
    run.so_far = so_far
    own = nn.utils.parameters_to_vector(run.float_buffers())
    save(run, rank_buffers=run.accelerator.gather(own.unsqueeze(0)))


def save(run: Run, rank_buffers: torch.Tensor | None) -> None:
    run.require_newest()
    run.saved_at = time.monotonic()
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        state = {
            "epoch": run.epoch,
            "so_far": asdict(run.so_far),
            "best": run.best,
            "scaler": scaler.state_dict() if scaler else None,
        }
        folder = run.folder / CHECKPOINTS_NAME
        save_checkpoint(folder, run.done_steps, run.bare_model, run.optimizer, state, rank_buffers)
    run.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class Command:
    """Train one model on a shard set. The same command again goes on where it stopped."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; by default runs/single/ARCH-POLICY-ID, where ID is a hash of the config and the shard set."""
    world_size: int = 0
    """Stop unless this many processes run together; 0 = any number."""


def main(argv: Sequence[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, description=__doc__)
    interrupt.install()
    config = command.run
    folder = command.out
    if folder is None:
        manifest = read_manifest(config.data.shards, config.data.cache_dir, config.data.cache_gb)
        identifier = trial_id(config, manifest.hash)
        folder = Path("runs/single") / f"{config.model.arch}-{config.augment.policy}-{identifier}"
    result = train(config, folder, world_size=command.world_size)
    if PartialState().is_main_process:
        show_result(result, folder)
    return OK


def show_result(result: Result, folder: Path) -> None:
    console = Console(soft_wrap=True)
    console.print(f"{folder}\nbest weights: epoch {result.best_epoch} of {result.epochs}", highlight=False)
    table = Table()
    for column in ("split", "Dice", "IoU", "Dice, data set", "IoU, data set", "loss", "all-pet Dice"):
        table.add_column(column, justify="left" if column == "split" else "right")
    fields = ("dice", "iou", "dice_dataset", "iou_dataset", "loss", "all_pet_dice")
    for split in ("val", "test"):
        if f"{split}/dice" in result.metrics:
            table.add_row(split, *(f"{result.metrics[f'{split}/{field}']:.4f}" for field in fields))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main))
