"""Ends jobs of a sweep: Slurm's by scancel, those of this machine by signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs.launch.journal import cut_off_submissions, reconcile
from jobs.launch.lock import LauncherAtWork, launcher_lock
from jobs.runs.trial import Sweep
from jobs.state.processes import HERE, as_pid, is_launcher, parent_of, works_for
from jobs.state.trial_status import TrialStatus
from slurm import patience
from slurm.patience import one_line

IDS_PER_CALL = 200
POLL_S = 0.1


def adopt_cut_off(sweep: Sweep) -> None:
    """Find the jobs that a killed launcher was submitting, or make sure that they never begin."""
    if not cut_off_submissions(sweep):
        return
    try:
        with launcher_lock(sweep.folder):
            reconcile(sweep)
    except LauncherAtWork:
        return  # which will write down the jobs itself


def shared_job_warnings(sweep: Sweep, rows: Sequence[TrialStatus]) -> Iterable[str]:
    """A warning about other trials that share these jobs, and end with them."""
    jobs = {row.submission.job_id for row in rows if row.submission}
    chosen = {row.trial.id for row in rows}
    given = sweep.submissions()
    others = [
        trial
        for trial in sweep.trials
        if trial.id in given and given[trial.id].job_id in jobs and trial.id not in chosen and not trial.has_ended
    ]
    if others:
        named = ", ".join(trial.id for trial in others)
        yield f"their jobs have other trials too, which end with them: {named}"


def cancel_slurm(rows: Iterable[TrialStatus]) -> None:
    """scancel, many ids per call. Jobs that Slurm has forgotten count as ended.

    Raises OSError with what scancel refused, after all ids were passed; Unavailable where Slurm does not answer now.
    """
    ids = list(dict.fromkeys(row.submission.job_id for row in rows if row.submission))
    refused: list[str] = []
    for start in range(0, len(ids), IDS_PER_CALL):
        try:
            patience.call(["scancel", *ids[start : start + IDS_PER_CALL]])
        except FileNotFoundError:
            raise OSError("no scancel on PATH: go to a login node of the cluster") from None
        except subprocess.CalledProcessError as error:
            complaints = error.stderr.splitlines() or [f"exit code {error.returncode}"]
            refused += [line for line in complaints if "Invalid job id" not in line]
    if complaint := one_line("\n".join(refused)):
        raise OSError(f"scancel: {complaint}")


def cancel_local(sweep: Sweep, rows: Sequence[TrialStatus], whole: bool, kill: bool, grace_s: float) -> None:
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


def _rank_here(row: TrialStatus, logs: Path) -> set[int]:
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
