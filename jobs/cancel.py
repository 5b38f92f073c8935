"""End trials of a sweep: Slurm's jobs, or the processes of this machine.

python jobs/cancel.py lab
python jobs/cancel.py lab 3f9a "unet elastic"
python jobs/cancel.py lab --yes

What is cancelled is saved where it can be, and goes on when the sweep is run again. Exit code 4 if Slurm does not say
whether the jobs have ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

if __name__ == "__main__" and not (find_spec("jobs") and find_spec("tyro")):
    sys.stderr.write(f"petseg is not installed in {sys.executable}: `. .venv/bin/activate`; or see README.md\n")
    sys.exit(2)

import tyro

from jobs.launch.journal import cut_off_submissions, reconcile
from jobs.launch.submit import LauncherAtWork, launcher_lock
from jobs.runs.choose import choose_all
from jobs.runs.trial import Sweep, find_sweep
from jobs.state.processes import HERE, as_pid, is_launcher, parent_of, works_for
from jobs.state.slurm_states import forget
from jobs.state.table import render_table
from jobs.state.trial_status import LIVE, Standing, standings, unknown_line
from petseg.run_folder.layout import PRUNED_NAME, RESULT_NAME
from shards.command import NOT_KNOWN, OK, parse, run_command, typed
from shards.terminal import Terminal
from slurm import patience
from slurm.patience import one_line

IDS_PER_CALL = 200
POLL_S = 0.1


@dataclass(frozen=True)
class Command:
    """End trials of a sweep."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder."""
    trials: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which ones: beginnings of ids, or words of their places on the axes, such as `unet`; all if not given."""
    yes: bool = False
    """Do not ask."""
    kill: bool = False
    """End processes of this machine at once, without letting them save."""
    grace_s: float = 20.0
    """How long to wait for processes of this machine to save and end."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    sweep = find_sweep(command.sweep, command.runs_dir)
    console = Terminal(width=None if sys.stdout.isatty() else 200)
    adopt_cut_off(sweep)
    rows = live_rows(sweep, command.trials)
    if not rows:
        console.print("nothing to cancel: none of them is queued or running", highlight=False)
        return OK
    console.print(render_table(f"to cancel: {len(rows)}", rows, console.width))
    for line in beside(sweep, rows):
        console.print(line, markup=False, highlight=False)
    if not command.yes and not confirmed(len(rows)):
        console.print("nothing was cancelled", highlight=False)
        return OK
    cancel_slurm(row for row in rows if row.submission and row.submission.cluster == "slurm")
    local = [row for row in rows if row.submission and row.submission.cluster == "local"]
    cancel_local(sweep, local, whole=not command.trials, kill=command.kill, grace_s=command.grace_s)
    forget(sweep.folder)
    wanted = {row.trial.id for row in rows}
    after = [row for row in standings(sweep) if row.trial.id in wanted]
    ended = sum(row.status not in LIVE for row in after)
    console.print(render_table(f"ended: {ended} of {len(after)}", after, console.width))
    if doubt := unknown_line(after):
        console.print(
            f"scancel was told, and what came of it is {doubt}", markup=False, highlight=False, soft_wrap=True
        )
        return NOT_KNOWN
    if ended < len(after):
        hint = f"those that still run are saving: see `{typed('jobs/status.py', sweep.folder)}`"
        if local:
            hint += ", or end processes of this machine with --kill"
        if any(row.submission and row.submission.cluster == "debug" for row in after):
            hint += "; those of --cluster debug end with their launcher, by Ctrl-C"
        console.print(hint, highlight=False, soft_wrap=True)
    return OK


def adopt_cut_off(sweep: Sweep) -> None:
    """Find the jobs of a launcher that was killed while it submitted them, or see to it that they never begin."""
    if not cut_off_submissions(sweep):
        return
    try:
        with launcher_lock(sweep.folder):
            reconcile(sweep)
    except LauncherAtWork:
        return  # which will write down the jobs itself


def live_rows(sweep: Sweep, selections: Sequence[str]) -> list[Standing]:
    wanted = {trial.id for trial in choose_all(sweep, selections)}
    return [row for row in standings(sweep) if row.trial.id in wanted and row.status in LIVE and row.submission]


def beside(sweep: Sweep, rows: Sequence[Standing]) -> Iterable[str]:
    """Other trials that live in the same jobs, and end with them."""
    jobs = {row.submission.job_id for row in rows if row.submission}
    chosen = {row.trial.id for row in rows}
    given = sweep.submissions()
    others = [
        trial
        for trial in sweep.trials
        if trial.id in given
        and given[trial.id].job_id in jobs
        and trial.id not in chosen
        and not any((trial.folder / name).exists() for name in (RESULT_NAME, PRUNED_NAME))
    ]
    if others:
        named = ", ".join(trial.id for trial in others)
        yield f"their jobs have other trials too, which end with them: {named}"


def confirmed(count: int) -> bool:
    """What the user answers; raises ValueError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ValueError(f"nothing was cancelled: nobody can be asked here, add --yes to cancel {count} trials")
    try:
        return input(f"cancel {count} trial{'s' if count > 1 else ''}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def cancel_slurm(rows: Iterable[Standing]) -> None:
    """scancel, many ids per call; raises OSError with its complaint, Unavailable where Slurm does not answer now."""
    ids = list(dict.fromkeys(row.submission.job_id for row in rows if row.submission))
    for start in range(0, len(ids), IDS_PER_CALL):
        try:
            patience.call(["scancel", *ids[start : start + IDS_PER_CALL]])
        except FileNotFoundError:
            raise OSError("no scancel on PATH: go to a login node of the cluster") from None
        except subprocess.CalledProcessError as error:
            said = one_line(error.stderr)
            if "Invalid job id" not in said:  # it has ended and is forgotten: as wished
                raise OSError(f"scancel: {said}") from None


def cancel_local(sweep: Sweep, rows: Sequence[Standing], whole: bool, kill: bool, grace_s: float) -> None:
    """SIGTERM to the launcher if the whole sweep is meant, else to each job's controller; wait until they are gone.

    Each pid is checked first: a process of submitit's that was started for this sweep's logs. Raises ValueError for
    trials of another machine.
    """
    logs = sweep.folder / "logs"
    jobs: dict[int, set[int]] = {}  # controller -> rank 0, where it is one of ours
    for row in rows:
        if row.submission and (job := as_pid(row.submission.job_id)):
            jobs.setdefault(job, set()).update(_rank_here(row, logs))
    controllers = {job for job in jobs if works_for(job, logs)}
    launchers = {parent for job in controllers if is_launcher(parent := parent_of(job))}
    if whole:
        _signal(launchers, signal.SIGTERM)  # which ends its trials, and starts no more
    if kill:
        _kill_groups(job for job in jobs if job in controllers or any(_group(rank) == job for rank in jobs[job]))
    elif not (whole and launchers):
        orphans = {rank for job, ranks in jobs.items() if job not in controllers for rank in ranks}
        _signal(controllers | orphans, signal.SIGTERM)  # a controller hands it on
    deadline = time.monotonic() + grace_s
    while _running(jobs, logs) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _rank_here(row: Standing, logs: Path) -> set[int]:
    """The pid of rank 0, if it is one of ours."""
    state = row.trial.state()
    if row.submission is None or state.job_id != row.submission.job_id:
        return set()
    if (state.host or HERE) != HERE:
        raise ValueError(f"{row.trial.id} runs on {state.host}: cancel it there")
    pid = as_pid(state.pid)
    return {pid} if pid and works_for(pid, logs) else set()


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _running(jobs: dict[int, set[int]], logs: Path) -> bool:
    return any(works_for(pid, logs) for job, ranks in jobs.items() for pid in (job, *ranks))


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill_groups(jobs: Iterable[int]) -> None:
    """A controller leads its session: its pid is the process group of all that the job started."""
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run_command(main))
