"""What a sweep costs beside its training: submission, status, short trials, saves, and coming back after a requeue.

python -m benchmarks.sweep --json sweep.json

On a rehearsal cluster of one node and on drawn pets, all in a temporary folder. Commands are timed whole, with the
start of Python. While many trials are submitted the partition is down, so that none of them runs beside the clock.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.sweep_cluster import NUM_SHORT_TRIALS, Lab, Packing, open_lab, time_requeues, time_short_trials
from benchmarks.sweep_rows import Row
from benchmarks.sweep_saves import measure_saves
from shards.command.flags import parse

SLURM_ANSWER = ".slurm.json"  # jobs/status.py keeps Slurm's last answer here for some seconds

SUBMIT_LIMIT_S = 5.0
STATUS_LIMIT_S = 1.0
SBATCH_LIMIT = 2
PACKINGS = (
    (Packing(1), Packing(12)),
    (Packing(1, cores=2), Packing(24, at_once=2, cores=2)),  # cores come by the pair, as a GPU comes whole
)
TOGETHER_LIMIT = 0.5  # of the time that one job for each trial takes
SAVES_LIMIT_PERCENT = 2.0
REQUEUE_LIMIT_S = 30.0


@dataclass(frozen=True)
class BenchConfig:
    """Time what a sweep costs beside its training."""

    trials: int = 1_000
    """Trials that are submitted at once; an even number."""
    commands: int = 3
    """Runs of each command, of the saves and of the requeue; medians are shown."""
    short_epochs: int = 40
    """Epochs of the short trials: a job that trains one should take about ten seconds here."""
    runs: int = 1
    """Runs of the short trials, each of some minutes; medians are shown."""
    scratch: Path = Path(tempfile.gettempdir())
    """Where the temporary folder lies: saves take as long as its disk needs."""
    json: Path | None = None
    """Write the rows to this file too."""

    def __post_init__(self) -> None:
        if self.trials < 2 or self.trials % 2:
            raise ValueError(f"--trials {self.trials}: must be even, for two architectures, and at least 2")


def measure(config: BenchConfig) -> Iterator[Row]:
    """Rows as they come."""
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        yield from measure_saves(Path(folder), config.commands, SAVES_LIMIT_PERCENT)
    with open_lab(config.scratch) as lab:
        yield from measure_commands(lab, config)
        yield from measure_requeue(lab, config)
        yield from measure_short_trials(lab, config)


def measure_commands(lab: Lab, config: BenchConfig) -> Iterator[Row]:
    """Submission, the same again, and status; every submission is of a sweep of its own."""
    seeds = ",".join(str(seed) for seed in range(config.trials // 2))
    axes = ["--axis", f"train.seed={seeds}", "--axis", "model.arch=unet,resnet34_unet", "--max-parallel", "1"]
    lab.run(["jobs/sweep.py", "--help"])  # fills the page cache
    lab.partition("DOWN")
    submitted, again, queued, cancelled, calls = [], [], [], [], []
    for number in range(config.commands):
        name = f"many{number}"
        before = lab.sbatch_calls()
        submitted.append(lab.sweep(name, *axes))
        calls.append(lab.sbatch_calls() - before)
        again.append(lab.sweep(name, *axes))
        queued.append(status_s(lab, name))
        lab.cancel_all()
        cancelled.append(status_s(lab, name))
    lab.partition("UP")
    what = f"{config.trials:,} trials"
    yield Row.of(f"submit {what}", submitted, "s", SUBMIT_LIMIT_S)
    yield Row.of(f"sbatch calls for {what}", calls, "calls", SBATCH_LIMIT)
    yield Row.of(f"the same command again, {what} queued", again, "s", SUBMIT_LIMIT_S)
    yield Row.of(f"status, {what} queued", queued, "s", STATUS_LIMIT_S, "squeue is asked")
    yield Row.of(f"status, {what} cancelled", cancelled, "s", STATUS_LIMIT_S, "squeue is asked, each one diagnosed")


def status_s(lab: Lab, name: str) -> float:
    (lab.runs / name / SLURM_ANSWER).unlink(missing_ok=True)
    return lab.run(["jobs/status.py", name, "--runs-dir", str(lab.runs)], allowed=(0, 3))


def measure_requeue(lab: Lab, config: BenchConfig) -> Iterator[Row]:
    """From USR2 to the first new step, Slurm's own delay apart."""
    rounds = time_requeues(lab, config.commands)
    own = {
        "to save": [r.save_s for r in rounds],
        "until Slurm has ended the old processes (KillWait is 2 s here)": [r.end_s for r in rounds],
        "until Python runs the trial": [r.start_s for r in rounds],
        "to the first step (imports torch)": [r.first_step_s for r in rounds],
    }
    note = ", ".join(f"{statistics.median(seconds):.1f} s {name}" for name, seconds in own.items())
    totals = [r.total_s - r.slurm_s for r in rounds]
    yield Row.of("requeue: USR2 to the first new step, Slurm's delay left out", totals, "s", REQUEUE_LIMIT_S, note)
    note = "from the old processes' end to the new start; cred_expire is 5 s here, 120 s by default"
    yield Row.of("requeue: the rehearsal's own delay", [r.slurm_s for r in rounds], "s", None, note)


def measure_short_trials(lab: Lab, config: BenchConfig) -> Iterator[Row]:
    """Trials of about ten seconds, of which half is the start of a job: each in a job, and together."""
    what = f"{NUM_SHORT_TRIALS} trials"
    for alone, together in PACKINGS:
        times: dict[Packing, list[float]] = {alone: [], together: []}
        for number in range(config.runs):
            for packing, seconds in times.items():
                name = f"short-{packing.cores}-{packing.per_job}-{number}"
                seconds.append(time_short_trials(lab, name, config.short_epochs, packing))
        each_s = statistics.median(times[alone]) * alone.places / NUM_SHORT_TRIALS
        yield Row.of(f"{what}, {alone.text}", times[alone], "s", None, f"computed: {each_s:.1f} s a job")
        yield Row.of(f"{what}, {together.text}", times[together], "s", None)
        ratios = [few / many for few, many in zip(times[together], times[alone], strict=True)]
        yield Row.of("the latter, times the former", ratios, "times", TOGETHER_LIMIT)


def main() -> None:
    config = parse(BenchConfig, None, __doc__)
    logging.disable(logging.INFO)
    console = Console(width=None if sys.stdout.isatty() else 160)
    start, rows = time.perf_counter(), []
    for row in measure(config):
        rows.append(row)
        console.print(
            f"[{time.perf_counter() - start:5.0f} s] {row.text()}", markup=False, highlight=False, soft_wrap=True
        )
    console.print(render(rows, config))
    if config.json is not None:
        facts = {"cpus": os.cpu_count(), "config": asdict(config) | {"json": None, "scratch": str(config.scratch)}}
        content = facts | {"rows": [asdict(row) for row in rows]}
        config.json.write_text(json.dumps(content, indent=2) + "\n")
    if missed := [row for row in rows if row.kept is False]:
        console.print(f"over the limit: {', '.join(row.name for row in missed)}")


def render(rows: list[Row], config: BenchConfig) -> Table:
    title = f"{os.cpu_count()} CPUs; medians of {config.commands}, short trials of {config.runs}"
    table = Table(title=title, title_justify="left")
    for column in ("what", "measured", "limit", "", "load", "note"):
        table.add_column(column, justify="right" if column in ("measured", "limit", "load") else "left")
    for row in rows:
        kept = {True: "kept", False: "over", None: ""}[row.kept]
        table.add_row(row.name, row.value_text, row.limit_text, kept, f"{row.load:.1f}", row.note)
    return table


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
