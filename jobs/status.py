"""Where each trial of a sweep stands.

python jobs/status.py lab
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jobs.trial import Submission, Sweep, Trial, find_sweep
from petseg.run_folder import load_config
from shards.command import OK, run_command
from slurm.cluster import JobState, job_states

LIVE = ("queued", "running")  # a job holds the trial: it is not to be submitted again


@dataclass(frozen=True)
class Standing:
    """Where one trial stands."""

    trial: Trial
    status: str  # planned | queued | running | interrupted | done | failed
    note: str = ""  # why it waits or failed
    epoch: int = 0
    epochs: int = 0
    dice: float | None = None  # best so far
    host: str = ""
    log: str = ""


def standings(sweep: Sweep) -> list[Standing]:
    """Where all trials stand, with one question to Slurm for all of them."""
    submissions = sweep.submissions()
    on_slurm = [s.job_id for s in submissions.values() if s.cluster == "slurm"]
    states = job_states(on_slurm) if on_slurm else {}
    return [standing(trial, submissions.get(trial.id), states) for trial in sweep.trials]


def standing(trial: Trial, submission: Submission | None, jobs: Mapping[str, JobState]) -> Standing:
    """Where a trial stands, by its own word and by what Slurm says of its job."""
    state, rows, result = trial.state(), trial.metrics(), trial.result()
    said = state.get("status", "")
    if result is not None:
        status, note = "done", ""
    elif submission is None:
        status, note = "planned", ""
    elif _alive(submission, state, jobs):
        job = jobs.get(submission.job_id)
        waits = job is not None and job.state in ("PENDING", "REQUEUED", "CONFIGURING")
        status, note = ("queued", job.reason) if job and waits else ("running", "")
    elif said == "failed":
        status, note = "failed", state.get("error", "")
    elif said == "running":
        status, note = "interrupted", "its process is gone: run the sweep again to go on"
    else:
        status, note = "interrupted", "its job ended before the trial began: see its log"
    return Standing(
        trial,
        status,
        note,
        epoch=max((int(row["epoch"]) for row in rows), default=0),
        epochs=_epochs(trial),
        dice=max((row["val/dice"] for row in rows), default=None),
        host=state.get("host", ""),
        log=submission.log if submission else "",
    )


def _alive(submission: Submission, state: Mapping[str, object], jobs: Mapping[str, JobState]) -> bool:
    """Whether the trial's last job may still run it. A local job lives as long as its process on this host."""
    if state.get("job_id") == submission.job_id and state.get("status") != "running":
        return False  # its own last word holds, whether or not Slurm can be asked
    if submission.cluster == "slurm":
        return not jobs[submission.job_id].is_over
    if state.get("host", socket.gethostname()) != socket.gethostname():
        return True  # another machine's process cannot be asked
    try:
        os.kill(int(submission.job_id), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _epochs(trial: Trial) -> int:
    try:
        return int(load_config(trial.folder)["config"]["train"]["epochs"])
    except ValueError:
        return 0


def render(sweep: Sweep, rows: Sequence[Standing]) -> Table:
    counts = Counter(row.status for row in rows)
    title = f"{sweep.name}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    table = Table(title=title, title_justify="left")
    for column in ("trial", "axes", "state", "epoch", "val Dice", "host", "log"):
        table.add_column(column, justify="right" if column in ("epoch", "val Dice") else "left", overflow="fold")
    for row in rows:
        status = f"{row.status}: {row.note}" if row.note else row.status
        epoch = f"{row.epoch}/{row.epochs}" if row.epochs else ""
        dice = "" if row.dice is None else f"{row.dice:.4f}"
        table.add_row(row.trial.id, row.trial.label, status, epoch, dice, row.host, row.log)
    return table


@dataclass(frozen=True)
class Command:
    """Show where each trial of a sweep stands."""

    sweep: Annotated[str, tyro.conf.Positional] = "lab"
    """Name of the sweep, or its folder."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


def main(argv: Sequence[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, description=__doc__)
    sweep = find_sweep(command.sweep, command.runs_dir)
    Console(width=None if sys.stdout.isatty() else 200).print(render(sweep, standings(sweep)))
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
