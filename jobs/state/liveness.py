"""A trial's signs of life, each read from the end of a small file: its progress, its speed, and how long ago."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from petseg.run_folder.heartbeat import HEARTBEAT_NAME, Heartbeat, read_heartbeat
from petseg.run_folder.layout import METRICS_NAME, load_config, parse_row
from shards.files import open_regular

TAIL_BYTES = 4096  # a row of metrics.jsonl has about 600

FEWEST_S = 600.0  # nothing is called stalled before
EPOCHS_OF_SILENCE = 5
UNKNOWN_PACE_S = 3600.0  # before the first heartbeat, shards may be staged and pictures decoded


@dataclass(frozen=True)
class Planned:
    """What config.json says of a trial's length; zeros if it cannot be read."""

    epochs: int = 0  # 0 where a budget counts
    batch_size: int = 0
    budget_steps: int = 0
    budget_s: float = 0.0


def time_left_s(beat: Heartbeat, plan: Planned) -> float | None:
    """About how long a trial still trains; validation and the test at the end are not in it.

    With a budget of minutes no longer than is left of them; how many epochs that makes is known after the first.
    """
    if beat.images_per_s <= 0 or not plan.batch_size:
        return None
    step_s = plan.batch_size / beat.images_per_s
    done = (beat.epoch - 1) * beat.steps_per_epoch + beat.step
    by_steps_s = max(0, (plan.budget_steps or beat.epochs * beat.steps_per_epoch) - done) * step_s
    if not plan.budget_s:
        return by_steps_s
    by_clock_s = max(0.0, plan.budget_s - done * step_s)
    return by_clock_s if beat.epoch == 1 else min(by_steps_s, by_clock_s)


@lru_cache(maxsize=10_000)
def planned(folder: Path) -> Planned:
    """Read once in a process: a trial's config never changes, and a thousand of them are slow to read."""
    try:
        train = load_config(folder)["config"]["train"]
        steps, minutes = int(train.get("budget_steps", 0)), float(train.get("budget_min", 0.0))
        epochs = 0 if steps or minutes else int(train["epochs"])
        return Planned(epochs, int(train["batch_size"]), steps, 60 * minutes)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return Planned()


def planned_epochs(folder: Path) -> int:
    """How many epochs the whole trial has; with a budget, the heartbeat's estimate, 0 before there is one."""
    plan = planned(folder)
    if not (plan.budget_steps or plan.budget_s):
        return plan.epochs
    beat = read_heartbeat(folder)
    return 0 if beat is None or (plan.budget_s and beat.epoch == 1) else beat.epochs


def read_last_row(folder: Path) -> dict[str, Any]:
    """The last whole row of metrics.jsonl; {} if there is none."""
    try:
        with open_regular(folder / METRICS_NAME, follow=False) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        if row := parse_row(line, folder / METRICS_NAME):  # others are cut short by a kill, or by where the tail begins
            return row
    return {}


def silence_s(folder: Path, beat: Heartbeat | None, began: float) -> float:
    """Seconds since the last sign of life; `began` is when the trial's present attempt began.

    By the file server's clock or the node's, whichever is kinder: clocks differ.
    """
    signs = [began, beat.time if beat else 0.0]
    for name in (HEARTBEAT_NAME, METRICS_NAME):
        with contextlib.suppress(OSError):
            signs.append((folder / name).stat().st_mtime)
    return time.time() - max(signs)


def patience_s(folder: Path, beat: Heartbeat | None, row: dict[str, Any]) -> float:
    """How long a healthy trial may be silent: 10 minutes, or five epochs if that is more."""
    epoch_s = row.get("perf/seconds")
    if epoch_s is None and beat and beat.images_per_s > 0:
        epoch_s = beat.steps_per_epoch * planned(folder).batch_size / beat.images_per_s
    if epoch_s is None:
        return UNKNOWN_PACE_S
    return max(FEWEST_S, EPOCHS_OF_SILENCE * float(epoch_s))
