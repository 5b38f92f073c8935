"""One epoch of training: its steps and, every few of them, the numbers of all ranks, the heartbeat, saves and stops."""

from __future__ import annotations

import enum
import json
import logging
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import torch
from accelerate.utils import gather_object

from petseg.data.ledger import Count, Ledger
from petseg.data.loader import Batch
from petseg.data.plan import global_batch
from petseg.footprint.utilization import mfu_row
from petseg.run.batches import epoch_order, take_step, train_batches
from petseg.run.pace import RankTime, data_wait, is_slow, straggler, straggler_in_words, with_common_steps
from petseg.run.parts import Parts
from petseg.run.progress import PartialEpoch
from petseg.run.run import Run
from petseg.run.schedule import fit_budget, learning_rate_at, relative_area_of, update_at
from petseg.run_folder.heartbeat import HeartbeatWriter
from petseg.training import interrupt
from petseg.training.progress_bar import TrainProgress
from petseg.training.resume import save_within
from petseg.training.step import run_step
from shards.cause import Cause
from shards.command import Failure, Interrupted
from shards.files import write_whole
from shards.manifest import Split, split_of_keys

Row = dict[str, float]

logger = logging.getLogger(__name__)


class Stop(enum.IntEnum):
    """What the signals that the ranks received ask for."""

    NO = 0
    SAVE = 1
    REQUEUE = 2


@dataclass
class RankTally:
    """What this rank has done of an epoch so far, over all attempts."""

    sums: torch.Tensor  # (4,) float64: samples, and the sums of their loss, Dice and IoU
    ledger: Ledger
    start: float  # by time.perf_counter
    waited_s: float  # for data
    seconds: float = 0.0  # until the ranks last shared their numbers

    def take_step(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of the next optimizer step, timed and entered in the ledger."""
        asked = time.perf_counter()
        micro_batches = take_step(batches)
        self.waited_s += time.perf_counter() - asked
        for batch in micro_batches:
            self.ledger.add(batch)
        return micro_batches


@dataclass(frozen=True)
class StepStats:
    """What all ranks together have done of an epoch so far, and what they are to do now."""

    samples: float
    loss: float  # this and the next two: sums over the samples
    dice: float
    iou: float
    lost: float  # samples that could not be read
    stop: Stop
    save_due: bool
    seconds: float  # by the main process's clock, which counts for all

    @property
    def images_per_s(self) -> float:
        return self.samples / self.seconds


def train_epoch(run: Run, epoch: int, bar: TrainProgress) -> tuple[Row, Stop]:
    """Train on the whole train split, or on what an interrupted epoch has left of it.

    Returns the epoch's row, and what signals asked for near its end. The row has means over the samples, speed, the
    share of time that the rank which waited most for data spent waiting, how far the slowest rank is behind
    (petseg.run.pace), and the ledger's coverage.
    Raises Interrupted, with the steps saved, if a signal asks a rank to stop within the epoch; Failure, on all ranks,
    for a loss that is not finite, for more unreadable samples than allowed, and for a ledger that does not balance.
    """
    parts, progress = run.parts, run.progress
    tally, done = start_tally(run), progress.partial.steps  # done: optimizer steps of this epoch
    heartbeat = HeartbeatWriter(parts.folder, progress.epochs, progress.steps_per_epoch) if parts.is_main else None
    batches = train_batches(parts, epoch, done)
    parts.model.train()
    run.pace.reset()
    run.energy.start()
    while done < progress.steps_of(epoch):
        run.pace.resume()
        micro_batches = tally.take_step(batches)
        with run.launches.step():
            run_step(run, epoch, done, micro_batches, tally.sums)
        run.pace.stop()
        done += 1
        update = update_at(parts.config, progress, epoch, done - 1, len(parts.splits["train"]))
        # within an update of several steps there are gradients, which no save keeps
        due = done == update.end and update.ends_interval(parts.config.train.log_every)
        if not due and done < progress.steps_of(epoch):
            continue
        stats = share_stats(run, tally)
        run.launches.arm()
        require_sound(parts, epoch, done - 1, stats, tally.ledger)
        if epoch == 1:
            fit_budget(parts.config, progress, done, stats.seconds)  # which may end the epoch here
        if heartbeat:
            heartbeat.beat(epoch, done, stats.images_per_s)
        if done < progress.steps_of(epoch):
            save_or_stop(run, done, tally, stats)
        all_done = progress.first_step(epoch) + done
        bar.update(all_done, progress.total_steps, stats.loss / stats.samples, stats.images_per_s)
    progress.partial = PartialEpoch()
    return epoch_row(run, epoch, stats, tally), stats.stop


def start_tally(run: Run) -> RankTally:
    """What this rank starts an epoch with: nothing, or what was done of the epoch before it was interrupted."""
    parts, before = run.parts, run.progress.partial
    own = before.sums_of(parts.rank, parts.world_size)
    return RankTally(
        sums=torch.tensor(own, dtype=torch.float64, device=parts.device),
        ledger=Ledger(before.count if parts.is_main else Count()),
        start=time.perf_counter() - before.seconds,
        waited_s=before.waited_s,
    )


def share_stats(run: Run, tally: RankTally) -> StepStats:
    """Add up the ranks' tallies. Only here, within an epoch, do hosts wait for devices and ranks for other ranks."""
    tally.seconds = time.perf_counter() - tally.start
    main = run.parts.is_main
    flags = [interrupt.requested(), interrupt.requeue_requested(), main and run.attempt.save_due]
    own = [float(number) for number in (tally.ledger.count.lost, *flags, tally.seconds * main)]
    reduced = run.parts.accelerator.reduce(torch.cat([tally.sums, tally.sums.new_tensor(own)])).tolist()
    samples, loss, dice, iou, lost, stops, requeues, due, seconds = reduced
    stop = Stop.REQUEUE if requeues else Stop.SAVE if stops else Stop.NO
    return StepStats(samples, loss, dice, iou, lost, stop, bool(due), seconds)


def require_sound(parts: Parts, epoch: int, step: int, stats: StepStats, ledger: Ledger) -> None:
    """Raises Failure, on all ranks, for too many lost samples and for a loss that is not finite."""
    if stats.lost > parts.config.data.max_lost_samples:
        raise ledger.failure("train", parts.config.data.max_lost_samples)
    if not math.isfinite(stats.loss):
        raise not_finite(parts, epoch, step)


def save_or_stop(run: Run, done: int, tally: RankTally, stats: StepStats) -> None:
    """Within an epoch, after `done` of its steps: save where that is due; where a signal came, raise Interrupted."""
    if not (stats.stop or stats.save_due):
        return
    own = torch.cat([tally.sums, tally.sums.new_tensor([tally.waited_s])]).unsqueeze(0)
    *columns, waits = run.parts.accelerator.gather(own).T.tolist()
    sums_of_ranks = tuple(zip(*columns, strict=True))
    count = tally.ledger.gather(run.parts.accelerator)
    save_within(run, PartialEpoch(done, sums_of_ranks, count, stats.seconds, max(waits)))
    if stats.stop:
        raise interrupted(run, stats.stop)


def epoch_row(run: Run, epoch: int, stats: StepStats, tally: RankTally) -> Row:
    """The numbers of the epoch's training for metrics.jsonl. Each rank must call it."""
    parts, progress = run.parts, run.progress
    expected, count = samples_of(run, epoch), tally.ledger.gather(parts.accelerator)
    count.check(expected, "train")
    full_size_per_s = stats.images_per_s * relative_area_of(parts.config, progress, epoch)
    return {
        "train/loss": stats.loss / stats.samples,
        "train/dice": stats.dice / stats.samples,
        "train/iou": stats.iou / stats.samples,
        "lr": learning_rate_at(parts.config, progress, epoch, progress.steps_of(epoch) - 1),
        "data/coverage": count.coverage(expected),
        "perf/seconds": stats.seconds,
        "perf/images_per_s": stats.images_per_s,
        **pace_row(run, RankTime(tally.waited_s, run.pace.own_s, tally.seconds), stats.images_per_s),
        **mfu_row(parts.config, full_size_per_s, parts.device, parts.world_size),
        **energy_row(run),
        **launch_row(run),
    }


def energy_row(run: Run) -> Row:
    """The energy that the GPUs used for the epoch's training since the run's last start. Each rank must call it."""
    own = torch.tensor(run.energy.joules(), device=run.parts.device)
    joules = run.parts.accelerator.reduce(own).item()
    return {} if math.isnan(joules) else {"perf/energy_j": joules}


def launch_row(run: Run) -> Row:
    """On a GPU, the share of the passes that graphs carried out, and that of a step in which the host launches work."""
    row = {"perf/graphed": run.graphs.take_share(), "perf/launching": run.launches.take_share()}
    return {name: share for name, share in row.items() if run.launches.enabled and not math.isnan(share)}


def pace_row(run: Run, own: RankTime, images_per_s: float) -> Row:
    """The wait for data, and how far the slowest rank is behind; a warning if that is much. Each rank must call it."""
    row_of_rank = torch.tensor([astuple(own)], dtype=torch.float64, device=run.parts.device)
    table = run.parts.accelerator.gather(row_of_rank)
    ranks = [RankTime(*row) for row in table.tolist()]
    wait = data_wait(ranks)
    row = {"perf/data_wait": wait, "perf/headroom": images_per_s / (1 - wait)}
    if len(ranks) == 1:
        return row
    if not run.pace.enabled:
        ranks = with_common_steps(ranks)
    if is_slow(ranks):
        hosts = gather_object([socket.gethostname()])
        if run.parts.is_main:
            logger.warning("%s", straggler_in_words(ranks, hosts))
    return row | {"perf/straggler": straggler(ranks)[1]}


def samples_of(run: Run, epoch: int) -> Split:
    """What an epoch's ledger must show: the train split, or what a budget leaves of it in the last epoch."""
    parts, steps = run.parts, run.progress.steps_of(epoch)
    if steps == run.progress.steps_per_epoch:
        return parts.manifest.splits["train"]
    ids = epoch_order(parts, epoch).ids(0, steps * parts.config.train.batch_size)
    return split_of_keys(parts.splits["train"].key(int(i)) for i in ids)


def interrupted(run: Run, stop: Stop) -> Interrupted:
    """The error for a run that a signal has stopped and that is saved."""
    progress = run.progress
    steps = f" and {progress.partial.steps} steps" if progress.partial.steps else ""
    message = f"{run.parts.folder} is saved up to epoch {progress.epoch}{steps}: run the same command to go on"
    return Interrupted(message, requeue=stop is Stop.REQUEUE)


def not_finite(parts: Parts, epoch: int, step: int) -> Failure:
    """The error for a loss that is NaN or infinite; writes the keys of the batches that it may come from to a file."""
    every = parts.config.train.log_every
    first = max(0, step - step % every - (parts.config.train.late_batches - 1))  # an update ends after the interval
    order, data = epoch_order(parts, epoch), parts.splits["train"]
    steps = {
        s: [data.key(int(i)) for i in global_batch(order, parts.config.train.batch_size, s)]
        for s in range(first, step + 1)
    }
    path = parts.folder / "not_finite.json"
    if parts.is_main:
        write_whole(path, json.dumps({"epoch": epoch, "keys_by_step": steps}, indent=2) + "\n")
    return Failure(
        f"the loss became NaN or infinite in steps {first}-{step} of epoch {epoch}: try a lower optim.lr, "
        f"optim.grad_clip 1 or train.mixed_precision no; the keys of those batches are in {path}",
        Cause.NAN,
    )
