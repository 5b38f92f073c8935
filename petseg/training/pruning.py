"""Early stopping of runs that do worse than their peers: hyperband's rungs, at which each run decides for itself.

When a run has finished the epochs of a rung, it reads the values of its peers at that epoch from their metrics.jsonl,
and continues if it is among about the best 1 / eta of those that have reached the rung, itself included. This is
asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020) with wandb's
rungs and threshold: no run waits for another, and the first at a rung always passes it.
Runs share no file for this and ask no server: metrics.jsonl has all values, and a requeued run finds the same lines.
Only which peers have reached a rung by then is left to chance.
"""

from __future__ import annotations

import json
import logging
import math
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petseg.run_folder.layout import Pruned, load_config, read_metrics, save_pruned

if TYPE_CHECKING:
    from petseg.run.progress import Progress
    from petseg.run.run import Run
    from petseg.tracking.tracker import Tracker

DICE_FIELDS = (
    "image_size_px",
    "fit",
    "border",
    "target",
)  # of the data: the Dice of runs that differ in them cannot be compared

logger = logging.getLogger(__name__)


class StoppedEarly(Exception):
    """A run was stopped before its last epoch."""

    def __init__(self, pruned: Pruned) -> None:
        super().__init__(
            f"stopped early after epoch {pruned.epoch} of {pruned.epochs}, best val Dice {pruned.best:.4f}"
        )
        self.pruned = pruned


@dataclass(frozen=True)
class Hyperband:
    """The rungs, in wandb's terms; an iteration is an epoch."""

    min_iter: int = 0
    """First rung; the others follow by factors of eta. Or leave it out, and give max_iter and s."""
    max_iter: int = 0
    """The epochs of a whole run: s rungs lie before it, max_iter / eta, max_iter / eta ** 2 and so on."""
    eta: float = 3.0
    """About 1 / eta of the runs pass a rung: of n the best floor(n / eta) + 1."""
    s: int = 0
    """How many rungs max_iter has."""
    strict: bool = False
    """Compare the value at the rung; otherwise the best value up to it, which stops fewer runs."""

    def __post_init__(self) -> None:
        for name in ("min_iter", "max_iter", "s"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} = {value!r}: must be a whole number of at least 1")
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float) or not 1.1 <= self.eta < math.inf:
            raise ValueError(f"eta = {self.eta!r}: must be a number of at least 1.1")
        if type(self.strict) is not bool:
            raise ValueError(f"strict = {self.strict!r}: must be true or false")
        if bool(self.min_iter) == bool(self.max_iter) or bool(self.max_iter) != bool(self.s):
            raise ValueError("give min_iter, or else max_iter together with s")
        if self.max_iter and not self.rungs(self.max_iter):
            raise ValueError(f"max_iter = {self.max_iter} leaves no rung at eta = {self.eta:g}: lower eta")

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """The epochs after which a run of so many epochs may be stopped."""
        reach = 2 + int(math.log(max(epochs, self.max_iter, 1), self.eta))  # further powers of eta exceed all epochs
        if self.max_iter:
            rungs = [int(self.max_iter / self.eta**i) for i in range(1, min(self.s, reach) + 1)]
        else:
            rungs = [int(self.min_iter * self.eta**i) for i in range(reach)]
        return tuple(sorted({rung for rung in rungs if 1 <= rung < epochs}))


@dataclass(frozen=True)
class EarlyStop:
    """The rule that stops a run early, and the runs that it is compared with."""

    rule: Hyperband
    find_peers: Callable[[], Iterable[Path]]  # folders of its peers; the main process calls it at each rung


def is_best(own: float, values: list[float], eta: float) -> tuple[bool, float]:
    """Whether a value passes among all values at a rung (its own included), higher being better; and the threshold.

    wandb's rule: the threshold is number floor(n / eta) of the n values, counted from 0 and from the best.
    """
    threshold = sorted(values, reverse=True)[int(len(values) / eta)]
    return own >= threshold, threshold


def pass_rung(run: Run, early: EarlyStop, tracker: Tracker | None) -> None:
    """Call between epochs: if the run ends at this rung, write pruned.json and raise StoppedEarly on all ranks.

    Its checkpoints stay, so that it can be resumed. A run that was interrupted in the epoch after a rung has passed it.
    """
    parts, progress = run.parts, run.progress
    if progress.epoch not in early.rule.rungs(progress.epochs) or progress.partial.steps:
        return
    from accelerate.utils import broadcast_object_list  # torch is not needed to read a rule

    (pruned,) = broadcast_object_list([decide(parts.folder, progress, early) if parts.is_main else None])
    if pruned is None:
        return
    if tracker:
        run.attempt.require_newest()
        save_pruned(pruned, parts.folder)
        summary = {"pruned_epoch": pruned.epoch, "best_epoch": pruned.best_epoch, "val/dice": pruned.best}
        tracker.finish(summary, "pruned")
    parts.accelerator.wait_for_everyone()
    raise StoppedEarly(pruned)


def decide(folder: Path, progress: Progress, early: EarlyStop) -> Pruned | None:
    """The outcome if the run is stopped at this rung, None if it passes; from the files of this run and its peers."""
    rule, rows = early.rule, read_metrics(folder)
    own = value_at(rows, progress.epoch, rule.strict)
    if own is None:
        return None
    at_rung = [row["val/dice"] for row in rows if row["epoch"] == progress.epoch]
    values = at_rung + list(values_of_peers(folder, early.find_peers(), progress.epoch))
    passed, threshold = is_best(own, values, rule.eta)
    rung = f"{folder.name}: val Dice {own:.4f} at the rung of epoch {progress.epoch}, threshold {threshold:.4f}"
    logger.info("%s of %d runs: %s", rung, len(values), "continues" if passed else "stopped early")
    if passed:
        return None
    return Pruned(
        trial_id=load_config(folder, identified=True)["trial_id"],
        epoch=progress.epoch,
        epochs=progress.epochs,
        best_epoch=progress.best.epoch,
        best=progress.best.dice,
        value=own,
        threshold=threshold,
        compared_with=len(values) - 1,
        host=socket.gethostname(),
        train_s=sum(row["perf/seconds"] for row in rows),
    )


def value_at(rows: list[dict[str, Any]], epoch: int, strict: bool) -> float | None:
    """val/dice after an epoch, or the best up to it; None if the run has not reached the epoch."""
    dice = {int(row["epoch"]): float(row["val/dice"]) for row in rows if int(row["epoch"]) <= epoch}
    if epoch not in dice or not math.isfinite(dice[epoch]):
        return None
    return dice[epoch] if strict else max(value for value in dice.values() if math.isfinite(value))


def values_of_peers(folder: Path, peers: Iterable[Path], epoch: int) -> Iterator[float]:
    """val/dice at an epoch of the peers that have reached it and measure the same Dice."""
    own = dice_settings(folder)
    for other in peers:
        value = value_at(read_metrics(other), epoch, strict=True)
        if value is not None and dice_settings(other) == own:
            yield value


def dice_settings(folder: Path) -> list[Any]:
    """The settings of a run on which its Dice depends, [] if they cannot be read."""
    try:
        data = load_config(folder)["identity"]["data"]
    except (ValueError, KeyError, json.JSONDecodeError):
        return []
    return [data.get(name) for name in DICE_FIELDS]
