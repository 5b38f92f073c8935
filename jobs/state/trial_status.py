"""Where each trial stands, put together from its folder, its process or Slurm, and a diagnosis of what failed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.runs.log_files import log_of
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import LAST_WORDS, TrialState
from jobs.state.causes import INTERRUPTIONS
from jobs.state.job_ends import forgotten_jobs, note_ends, read_ends, with_noted
from jobs.state.liveness import patience_s, planned, planned_epochs, read_last_row, silence_s, time_left_s
from jobs.state.processes import HERE, as_pid, runs_trials
from jobs.state.slurm_states import Answer, ask
from jobs.state.triage import Diagnosis, LastJob, diagnose, gather
from jobs.state.waits import Wait, wait_of
from petseg.run_folder.heartbeat import Heartbeat, read_heartbeat
from petseg.run_folder.layout import Pruned, Result
from shards.cause import Cause
from shards.terminal import duration
from slurm.cluster import MISSING, UNKNOWN, JobState, job_states

LIVE = ("queued", "running", "stalled", "unknown")  # a job holds the trial, or may: it is not to be submitted again
ENDED = ("done", "pruned")  # nothing is left to do
STATES = ("running", "stalled", "queued", "unknown", "interrupted", "failed", "planned", "pruned", "done")
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "PREEMPTED"})
HELD = frozenset({"SUSPENDED", "STOPPED"})
CUT_OFF = "submission was cut off: run the sweep again"
BEHIND = "waits for its turn in its job"


@dataclass(frozen=True)
class TrialStatus:
    """Where one trial stands."""

    trial: Trial
    status: str  # one of STATES
    note: str = ""  # why it waits, failed, or makes no progress
    epoch: int = 0  # finished epochs
    epochs: int = 0  # 0 = not known yet
    dice: float | None = None  # val/dice of the best weights when done, of the last epoch before
    host: str = ""
    log: str = ""
    beat: Heartbeat | None = None  # while it runs
    left_s: float | None = None
    restarts: int = 0
    submission: Submission | None = None
    verdict: Diagnosis | None = None  # where it ended without a result
    wait: Wait | None = None  # where it is queued and will not start by itself
    silence: str = ""  # why Slurm does not say how its job stands

    @property
    def cause(self) -> str:
        return self.verdict.cause if self.verdict else ""


def trial_statuses(sweep: Sweep, patience_s: float | None = None) -> list[TrialStatus]:
    """Where all trials stand, with one question to Slurm for all of them.

    patience_s: how long Slurm may take to answer; by default it is asked again while it is busy
    """
    submissions = sweep.submissions()
    return rows_of(sweep, submissions, job_states(_open_jobs(sweep, submissions), patience_s))


def unknown_line(rows: Sequence[TrialStatus]) -> str:
    """A line for the user if Slurm did not say how jobs stand; empty if all is known."""
    unknown = [row for row in rows if row.status == "unknown"]
    if not unknown:
        return ""
    why = f"because Slurm does not answer ({unknown[0].silence}). Try again when it does"
    return f"unknown: {len(unknown)} of {len(rows)} trials, {why}"


def quick_trial_statuses(sweep: Sweep) -> tuple[list[TrialStatus], Answer]:
    """As `trial_statuses`, for those who look often: Slurm's answer may be seconds old, and none is waited for long."""
    submissions = sweep.submissions()
    answer = ask(sweep.folder, _open_jobs(sweep, submissions))
    return rows_of(sweep, submissions, answer.states), answer


def _open_jobs(sweep: Sweep, submissions: Mapping[str, Submission]) -> list[str]:
    """The Slurm jobs of trials that have no result: nothing needs to be known about the others."""
    return [
        submissions[trial.id].job_id
        for trial in sweep.trials
        if trial.id in submissions
        and submissions[trial.id].cluster == "slurm"
        and submissions[trial.id].job_id
        and not trial.has_ended
    ]


def rows_of(sweep: Sweep, submissions: Mapping[str, Submission], jobs: Mapping[str, JobState]) -> list[TrialStatus]:
    """Where all trials stand, by what Slurm says of their jobs; writes down how jobs ended, and looks it up."""
    jobs = _remembered(sweep, submissions, jobs)
    trials_of = Counter(submission.job_id for submission in submissions.values())
    rows = []
    for trial in sweep.trials:
        submission = submissions.get(trial.id)
        shared = submission is not None and trials_of[submission.job_id] > 1
        rows.append(trial_status(trial, submission, jobs, shared))
    return _as_many_as_run(rows)


def _remembered(
    sweep: Sweep, submissions: Mapping[str, Submission], jobs: Mapping[str, JobState]
) -> Mapping[str, JobState]:
    known = read_ends(sweep.folder)
    note_ends(sweep.folder, known, jobs)
    forgotten = forgotten_jobs(jobs, known)
    began: dict[str, float] = {}
    for trial in sweep.trials if forgotten else ():
        given = submissions.get(trial.id)
        if given and given.job_id in forgotten:
            began[given.job_id] = max(began.get(given.job_id, 0.0), _began(trial.state(), given.job_id))
    return with_noted(jobs, known, began)


def _began(state: TrialState, job_id: str) -> float:
    """When the job last began the trial; 0 if it did not, or if the trial has ended since."""
    return state.time if state.of_job(job_id).status == "running" else 0.0


def _as_many_as_run(rows: Sequence[TrialStatus]) -> list[TrialStatus]:
    """Correct trials of one job that all say they run: only the latest do, as many as the job runs at once.

    A requeued job starts over, with a trial that failed before the interrupted one, whose state still says `running`.
    """
    begun: dict[str, list[tuple[TrialState, str]]] = {}
    for row in rows:
        if row.submission and row.status in ("running", "stalled"):
            begun.setdefault(row.submission.job_id, []).append((row.trial.state(), row.trial.id))
    behind: set[str] = set()
    for several in (group for group in begun.values() if len(group) > 1):
        latest = sorted(several, key=lambda one: one[0].time, reverse=True)
        behind |= {identifier for _, identifier in latest[latest[0][0].at_once :]}
    waits: dict[str, Any] = {"status": "queued", "note": BEHIND, "beat": None, "left_s": None}
    return [replace(row, **waits) if row.trial.id in behind else row for row in rows]


def trial_status(
    trial: Trial, submission: Submission | None, jobs: Mapping[str, JobState], shared: bool = False
) -> TrialStatus:
    """Where a trial stands, by its folder and by what Slurm says of its job. shared: the job has other trials too."""
    try:
        result, pruned, trouble = trial.result(), trial.pruned(), ""
    except ValueError as error:  # written by another version: this is one trial of many
        result, pruned, trouble = None, None, str(error)
    if result is not None or pruned is not None:
        return _ended(trial, submission, result, pruned)
    state = trial.state()
    log = _own_log(submission, state) if submission else ""
    known = TrialStatus(trial, "planned", host=state.host, log=log, restarts=state.restarts, submission=submission)
    if submission is None:
        return _single(known) if trial.attempts() else replace(known, note=trouble)
    if not submission.job_id:
        return replace(known, note=CUT_OFF)
    job = jobs.get(submission.job_id) if submission.cluster == "slurm" else None
    last = LastJob(trial, submission, job, state.of_job(submission.job_id), read_last_row(trial.folder), shared)
    known = _with_progress(known, last.row)
    if _alive(last):
        return _live(known, last)
    verdict = diagnose(gather(last))
    failed = last.state.status == "failed" or verdict.cause not in INTERRUPTIONS or bool(trouble)
    note = trouble or _why_over(last, verdict)
    return replace(known, status="failed" if failed else "interrupted", note=note, verdict=verdict)


def _ended(trial: Trial, submission: Submission | None, result: Result | None, pruned: Pruned | None) -> TrialStatus:
    """Finished, or stopped early: then its Dice is the best of its epochs, and it has no result."""
    known = TrialStatus(trial, "done", log=submission.log if submission else "", submission=submission)
    if result is not None:
        dice = result.metrics["val/dice"]
        return replace(known, epoch=result.epochs, epochs=result.epochs, dice=dice, host=result.host)
    assert pruned is not None
    progress: dict[str, Any] = {"epoch": pruned.epoch, "epochs": pruned.epochs, "dice": pruned.best}
    return replace(known, status="pruned", host=pruned.host, **progress)


def _with_progress(known: TrialStatus, row: Mapping[str, Any]) -> TrialStatus:
    """How far an unfinished trial is, by its last row of metrics."""
    epochs = planned_epochs(known.trial.folder)
    return replace(known, epoch=int(row.get("epoch", 0)), epochs=epochs, dice=row.get("val/dice"))


def _single(known: TrialStatus) -> TrialStatus:
    """A run that somebody started with petseg/train.py: it may run, wait, or be over."""
    trial = known.trial
    row, last = read_last_row(trial.folder), trial.attempts()[-1]
    known = replace(_with_progress(known, row), host=last.host, restarts=last.number - 1)
    beat, silent_s = _sign_of_life(trial, last.time)
    if silent_s > patience_s(trial.folder, beat, row):
        return replace(known, status="interrupted", note=f"no sign of life for {duration(silent_s)}")
    left_s = time_left_s(beat, planned(trial.folder)) if beat else None
    return replace(known, status="running", beat=beat, left_s=left_s)


def _own_log(submission: Submission, state: TrialState) -> str:
    slot = state.of_job(submission.job_id).slot
    return str(log_of(Path(submission.log), submission, slot)) if slot and submission.log else submission.log


def _why_over(last: LastJob, verdict: Diagnosis) -> str:
    state, job = last.state, last.job
    if state.status == "failed":
        return state.error or verdict.advice
    if state.status in ("done", "pruned"):
        return "its result.json is gone: run the sweep again"
    if not state.job_id and verdict.cause is Cause.UNKNOWN and job and job.state == MISSING:
        return "it never began, and Slurm no longer knows its job (cancelled while it waited?): run the sweep again"
    return verdict.advice


def _live(known: TrialStatus, last: LastJob) -> TrialStatus:
    """Queued, running or stalled; or unknown, where Slurm does not say."""
    trial, state, job = last.trial, last.state, last.job
    if job and job.state in WAITING:
        reason = job.reason or ("its job comes again" if state.job_id else "")
        return replace(known, status="queued", note=reason, wait=wait_of(job))
    if job and job.state == UNKNOWN:
        return _unknown(replace(known, silence=job.reason), state)
    if not state.job_id:
        if last.shared:
            return replace(known, status="queued", note=BEHIND)
        return replace(known, status="running", note="starting")
    if job and job.state in HELD:
        return replace(known, status="running", note=f"{job.state.lower()} by Slurm")
    beat, silent_s = _sign_of_life(trial, state.time)
    known = replace(known, beat=beat, left_s=time_left_s(beat, planned(trial.folder)) if beat else None)
    if silent_s > patience_s(trial.folder, beat, last.row):
        return replace(known, status="stalled", note=f"no sign of life for {duration(silent_s)}: see its log")
    return replace(known, status="running")


def _unknown(known: TrialStatus, state: TrialState) -> TrialStatus:
    """Slurm does not answer: the job may wait, run, or be over."""
    known = replace(known, status="unknown", note="Slurm does not answer")
    if state.status != "running":
        return known
    beat, silent_s = _sign_of_life(known.trial, state.time)
    return replace(known, note=f"{known.note}; last sign of life {duration(silent_s)} ago", beat=beat)


def _sign_of_life(trial: Trial, began: float) -> tuple[Heartbeat | None, float]:
    """The last heartbeat of the attempt that began then, and the seconds since the last sign of life."""
    beat = read_heartbeat(trial.folder)
    if beat and beat.time < began:
        beat = None  # of an earlier attempt
    return beat, silence_s(trial.folder, beat, began)


def _alive(last: LastJob) -> bool:
    """Whether the trial's last job may still run it. A local job lives as long as one of its processes on its host."""
    submission, state, job = last.submission, last.state, last.job
    if state.status in LAST_WORDS:
        return False  # whatever Slurm says; an `interrupted` trial may be requeued
    if submission.cluster == "slurm":
        return job is None or not job.is_over
    if (state.host or HERE) != HERE:
        return state.status != "interrupted"  # another machine's process cannot be asked
    if submission.cluster == "debug":
        return state.status == "running" and _exists(as_pid(state.pid))
    pids = [as_pid(state.pid), as_pid(submission.job_id)]
    if state.slot:
        pids.pop()  # its job keeps running with other workers
    return any(runs_trials(pid) for pid in pids if pid)


def _exists(pid: int) -> bool:
    """A debug job runs in the launcher itself, whatever that is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(pid)
