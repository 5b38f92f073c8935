"""The work of an epoch: steps, the looks at what they show, and the points at which a run may stop."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import math
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import torch
from accelerate.utils import gather_object

from petseg import interrupt
from petseg.data.ledger import Count, Ledger
from petseg.data.loader import Batch
from petseg.data.plan import global_batch
from petseg.lives import Heartbeat
from petseg.metrics import count_pixels, dice_of, iou_of
from petseg.optim import set_learning_rate
from petseg.pace import RankTime, data_wait, is_slow, straggler, straggler_in_words, with_common_steps
from petseg.progress import TrainProgress
from petseg.resume import save_within
from petseg.run import EpochSoFar, Run
from petseg.utilization import mfu_row
from shards.command import Failure, Interrupted
from shards.manifest import Split, split_of_keys, write_whole

Row = dict[str, float]

logger = logging.getLogger(__name__)


class Stop(enum.IntEnum):
    """What signals ask for, over all ranks."""

    NO = 0
    SAVE = 1
    REQUEUE = 2


@dataclass(frozen=True)
class Look:
    """What all ranks together have done of an epoch so far, and what they are asked for."""

    samples: float
    loss: float  # this and the next two: sums over the samples
    dice: float
    iou: float
    lost: float  # samples that could not be read
    stop: Stop
    save_due: bool
    seconds: float  # by the main process's clock, which is that of all


def train_epoch(run: Run, epoch: int, progress: TrainProgress) -> tuple[Row, Stop]:
    """One pass over the train split, or the rest of it; and what signals asked for near its end.

    The row has means over the samples, speed, the share of time spent waiting for data by the rank that waited most,
    how far the slowest rank is behind (petseg.pace), and the ledger's coverage.
    Raises Interrupted, with the steps saved, if a rank is told to stop within the epoch; Failure, on all ranks, for a
    loss that is not finite, for more unreadable samples than allowed, and for a ledger that does not close.
    """
    run.model.train()
    main, before = run.accelerator.is_main_process, run.so_far
    ledger = Ledger(before.count if main else Count())
    own = before.sums_of(run.rank, run.world_size)
    sums = torch.tensor(own, dtype=torch.float64, device=run.accelerator.device)
    heartbeat = Heartbeat(run.folder, run.epochs, run.steps_per_epoch) if main else None
    start, waited_s = time.perf_counter() - before.seconds, before.waited_s
    batches = run.train_batches(epoch, before.steps)
    run.pace.begin()
    run.energy.begin()
    for step in range(before.steps, run.steps_of(epoch)):
        asked = time.perf_counter()
        run.pace.go_on()
        parts = take_step(batches)
        waited_s += time.perf_counter() - asked
        for batch in parts:
            ledger.add(batch)
        train_step(run, epoch, step, parts, sums)
        run.pace.stop()
        if (step + 1) % run.config.train.log_every and step + 1 < run.steps_of(epoch):
            continue
        elapsed_s = time.perf_counter() - start
        seen = look(run, sums, ledger.count.lost, elapsed_s)
        require_sound(run, epoch, step, seen, ledger)
        if epoch == 1:
            run.fit_budget(step + 1, seen.seconds)  # which may end the epoch here
        images_per_s = seen.samples / seen.seconds
        if heartbeat:
            heartbeat.beat(epoch, step + 1, images_per_s)
        is_last = step + 1 == run.steps_of(epoch)
        if (seen.stop or seen.save_due) and not is_last:
            save_part(run, step + 1, sums, ledger, waited_s, seen.seconds)
        if seen.stop and not is_last:
            raise interrupted(run, seen.stop)
        done = (epoch - 1) * run.steps_per_epoch + step + 1
        progress.update(done, run.total_steps, seen.loss / seen.samples, images_per_s)
        if is_last:
            break
    run.so_far = EpochSoFar()
    return epoch_row(run, epoch, seen, ledger, RankTime(waited_s, run.pace.own_s, elapsed_s)), seen.stop


def look(run: Run, sums: torch.Tensor, lost: int, elapsed_s: float) -> Look:
    """The only place within an epoch where the host waits for the device and the ranks for each other's numbers."""
    main = run.accelerator.is_main_process
    flags = [lost, interrupt.requested(), interrupt.requeue_requested(), main and run.save_due, elapsed_s * main]
    shared = torch.cat([sums, sums.new_tensor([float(flag) for flag in flags])])
    samples, loss, dice, iou, lost_in_all, stops, requeues, due, seconds = run.accelerator.reduce(shared).tolist()
    stop = Stop.REQUEUE if requeues else Stop.SAVE if stops else Stop.NO
    return Look(samples, loss, dice, iou, lost_in_all, stop, bool(due), seconds)


def require_sound(run: Run, epoch: int, step: int, seen: Look, ledger: Ledger) -> None:
    """Raises Failure, on all ranks, for too many lost samples and for a loss that is not finite."""
    if seen.lost > run.config.data.max_lost_samples:
        raise ledger.failure("train", run.config.data.max_lost_samples)
    if not math.isfinite(seen.loss):
        raise not_finite(run, epoch, step)


def save_part(run: Run, steps: int, sums: torch.Tensor, ledger: Ledger, waited_s: float, seconds: float) -> None:
    """A checkpoint within the epoch, after its first `steps` steps."""
    own = torch.cat([sums, sums.new_tensor([waited_s])]).unsqueeze(0)
    *columns, waits = run.accelerator.gather(own).T.tolist()
    every_rank = tuple(zip(*columns, strict=True))
    save_within(run, EpochSoFar(steps, every_rank, ledger.gather(run.accelerator), seconds, max(waits)))


def epoch_row(run: Run, epoch: int, seen: Look, ledger: Ledger, own: RankTime) -> Row:
    """What metrics.jsonl says of the epoch's training. Each rank must call it."""
    expected, count = samples_of(run, epoch), ledger.gather(run.accelerator)
    count.check(expected, "train")
    images_per_s = seen.samples / seen.seconds
    full_size_per_s = images_per_s * run.relative_area(epoch)
    return {
        "train/loss": seen.loss / seen.samples,
        "train/dice": seen.dice / seen.samples,
        "train/iou": seen.iou / seen.samples,
        "lr": run.learning_rate(epoch, run.steps_of(epoch) - 1),
        "data/coverage": count.coverage(expected),
        "perf/seconds": seen.seconds,
        "perf/images_per_s": images_per_s,
        **pace_row(run, own, images_per_s),
        **mfu_row(run.config, full_size_per_s, run.accelerator.device, run.world_size),
        **energy_row(run),
    }


def energy_row(run: Run) -> Row:
    """What the GPUs took for the epoch's training since the run's last start. Each rank must call it."""
    joules = run.accelerator.reduce(torch.tensor(run.energy.joules(), device=run.accelerator.device)).item()
    return {} if math.isnan(joules) else {"perf/energy_j": joules}


def pace_row(run: Run, own: RankTime, images_per_s: float) -> Row:
    """What data cost, and how far the slowest rank is behind, which is said if it is much. Each rank must call it."""
    table = run.accelerator.gather(torch.tensor([astuple(own)], dtype=torch.float64, device=run.accelerator.device))
    ranks = [RankTime(*row) for row in table.tolist()]
    wait = data_wait(ranks)
    row = {"perf/data_wait": wait, "perf/headroom": images_per_s / (1 - wait)}
    if len(ranks) == 1:
        return row
    if not run.pace.enabled:
        ranks = with_common_steps(ranks)
    if is_slow(ranks):
        hosts = gather_object([socket.gethostname()])
        if run.accelerator.is_main_process:
            logger.warning("%s", straggler_in_words(ranks, hosts))
    return row | {"perf/straggler": straggler(ranks)[1]}


def samples_of(run: Run, epoch: int) -> Split:
    """What the ledger of an epoch must come to: the train split, or what a budget leaves of it in the last epoch."""
    steps = run.steps_of(epoch)
    if steps == run.steps_per_epoch:
        return run.manifest.splits["train"]
    ids = run.order(epoch).ids(0, steps * run.config.train.batch_size)
    return split_of_keys(run.splits["train"].key(int(i)) for i in ids)


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
    smaller last batch nor another world size changes its weight; a sample and its copy (augment.mode) share it.
    """
    set_learning_rate(run.optimizer, run.learning_rate(epoch, step))
    for batch in parts:
        image, target, weight = run.train_inputs(batch, epoch)
        exchange_later = contextlib.nullcontext() if batch.plan.last else run.accelerator.no_sync(run.model)
        with exchange_later:
            with run.pace.stopped_until(run.bare_model):
                logits = run.model(image)  # (B, 2, H, W)
            losses = run.loss(logits, target)  # (B,)
            share = (losses * weight).sum() * (run.world_size / batch.plan.step_samples)
            with run.pace.stopped() if batch.plan.last else contextlib.nullcontext():
                run.accelerator.backward(share)
        counts = count_pixels(logits.detach(), target)
        columns = [torch.ones_like(losses), losses.detach(), dice_of(counts), iou_of(counts)]
        sums += torch.stack(columns).double() @ weight.double()
    if run.config.optim.grad_clip:
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.optim.grad_clip)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema:
        run.ema.update((epoch - 1) * run.steps_per_epoch + step)


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
