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
from jobs.state.triage import Diagnosis, diagnose, gather
from jobs.state.waits import Wait, wait_of
from petseg.run_folder.heartbeat import Heartbeat, read_heartbeat
from petseg.run_folder.layout import PRUNED_NAME, RESULT_NAME, Pruned, Result
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
    note: str = ""  # why it waits, or failed, or stands still
    epoch: int = 0  # finished ones
    epochs: int = 0  # 0 = not known yet
    dice: float | None = None  # val/dice of the best weights when done, of the last epoch before
    host: str = ""
    log: str = ""
    beat: Heartbeat | None = None  # while it runs
    left_s: float | None = None
    restarts: int = 0
    submission: Submission | None = None
    verdict: Diagnosis | None = None  # of what ended without a result
    wait: Wait | None = None  # of what is queued, and does not start by itself
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
    """What to say where Slurm did not tell how jobs stand; empty if all is known."""
    unknown = [row for row in rows if row.status == "unknown"]
    if not unknown:
        return ""
    why = f"because Slurm does not answer ({unknown[0].silence}). Try again when it does"
    return f"unknown: {len(unknown)} of {len(rows)} trials, {why}"


def quick_trial_statuses(sweep: Sweep) -> tuple[list[TrialStatus], Answer]:
    """The same for people who look often: an answer of Slurm may be some seconds old, and none is waited for long."""
    submissions = sweep.submissions()
    answer = ask(sweep.folder, _open_jobs(sweep, submissions))
    return rows_of(sweep, submissions, answer.states), answer


def _open_jobs(sweep: Sweep, submissions: Mapping[str, Submission]) -> list[str]:
    """The Slurm jobs of trials that have no result: of the others nothing needs to be known."""
    return [
        submissions[trial.id].job_id
        for trial in sweep.trials
        if trial.id in submissions
        and submissions[trial.id].cluster == "slurm"
        and submissions[trial.id].job_id
        and not any((trial.folder / name).exists() for name in (RESULT_NAME, PRUNED_NAME))
    ]


def rows_of(sweep: Sweep, submissions: Mapping[str, Submission], jobs: Mapping[str, JobState]) -> list[TrialStatus]:
    """Where all trials stand, by what Slurm says of their jobs; how jobs ended is written down, and looked up."""
    jobs = _remembered(sweep, submissions, jobs)
    trials_of = Counter(submission.job_id for submission in submissions.values())
    rows = [
        trial_status(
            trial, (given := submissions.get(trial.id)), jobs, given is not None and trials_of[given.job_id] > 1
        )
        for trial in sweep.trials
    ]
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
    """When the job last began the trial; 0 if it did not, or has said since how it ended."""
    return state.time if state.of_job(job_id).status == "running" else 0.0


def _as_many_as_run(rows: Sequence[TrialStatus]) -> list[TrialStatus]:
    """A job runs its trials one after the other, or some at once: of those that say that they run, the latest do.

    A job that was requeued begins anew, with a trial that had failed before it came to the one that was interrupted.
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
    """Where a trial stands, by its own word and by what Slurm says of its job. shared: the job has other trials too."""
    try:
        result, pruned, trouble = trial.result(), trial.pruned(), ""
    except ValueError as error:  # written by another version: of one trial of many
        result, pruned, trouble = None, None, str(error)
    if result is not None:
        return _done(trial, submission, result)
    if pruned is not None:
        return _pruned(trial, submission, pruned)
    state = trial.state()
    common: dict[str, Any] = {
        "submission": submission,
        "host": state.host,
        "log": _own_log(submission, state) if submission else "",
        "restarts": state.restarts,
    }
    if submission is None:
        return _single(trial, common) if trial.attempts() else TrialStatus(trial, "planned", trouble, **common)
    if not submission.job_id:
        return TrialStatus(trial, "planned", CUT_OFF, **common)
    row = read_last_row(trial.folder)
    common |= {
        "epoch": int(row.get("epoch", 0)),
        "epochs": planned_epochs(trial.folder),
        "dice": row.get("val/dice"),
    }
    state = state.of_job(submission.job_id)
    job = jobs.get(submission.job_id) if submission.cluster == "slurm" else None
    if _alive(submission, state, job):
        return _live(trial, state, job, row, common, shared)
    verdict = diagnose(gather(trial, submission, job, state, row, shared))
    failed = state.status == "failed" or verdict.cause not in INTERRUPTIONS or bool(trouble)
    note = trouble or _why_over(state, job, verdict)
    return TrialStatus(trial, "failed" if failed else "interrupted", note, verdict=verdict, **common)


def _single(trial: Trial, common: dict[str, Any]) -> TrialStatus:
    """A run that no launcher has submitted: petseg/train.py was started by hand, and may run, wait, or be over."""
    row, last = read_last_row(trial.folder), trial.attempts()[-1]
    common |= {
        "host": last.host,
        "restarts": last.number - 1,
        "epoch": int(row.get("epoch", 0)),
        "epochs": planned_epochs(trial.folder),
        "dice": row.get("val/dice"),
    }
    beat, silent_s = _sign_of_life(trial, last.time)
    if silent_s > patience_s(trial.folder, beat, row):
        return TrialStatus(trial, "interrupted", f"no sign of life for {duration(silent_s)}", **common)
    left_s = time_left_s(beat, planned(trial.folder)) if beat else None
    return TrialStatus(trial, "running", beat=beat, left_s=left_s, **common)


def _own_log(submission: Submission, state: TrialState) -> str:
    slot = state.of_job(submission.job_id).slot
    return str(log_of(Path(submission.log), submission, slot)) if slot else submission.log


def _why_over(state: TrialState, job: JobState | None, verdict: Diagnosis) -> str:
    if state.status == "failed":
        return state.error or verdict.advice
    if state.status in ("done", "pruned"):
        return "its result.json is gone: run the sweep again"
    if not state.job_id and verdict.cause is Cause.UNKNOWN and job and job.state == MISSING:
        return "it never began, and Slurm knows its job no more (cancelled while it waited?): run the sweep again"
    return verdict.advice


def _done(trial: Trial, submission: Submission | None, result: Result) -> TrialStatus:
    return TrialStatus(
        trial,
        "done",
        epoch=result.epochs,
        epochs=result.epochs,
        dice=result.metrics["val/dice"],
        host=result.host,
        log=submission.log if submission else "",
        submission=submission,
    )


def _pruned(trial: Trial, submission: Submission | None, pruned: Pruned) -> TrialStatus:
    """Stopped early: its Dice is the best of the epochs that it had, and no result."""
    return TrialStatus(
        trial,
        "pruned",
        epoch=pruned.epoch,
        epochs=pruned.epochs,
        dice=pruned.best,
        host=pruned.host,
        log=submission.log if submission else "",
        submission=submission,
    )


def _live(
    trial: Trial,
    state: TrialState,
    job: JobState | None,
    row: dict[str, Any],
    common: dict[str, Any],
    shared: bool,
) -> TrialStatus:
    """Queued, running or stalled."""
    if job and job.state in WAITING:
        reason = job.reason or ("its job comes again" if state.job_id else "")
        return TrialStatus(trial, "queued", reason, wait=wait_of(job), **common)
    if job and job.state == UNKNOWN:
        return _unknown(trial, state, job, common)
    if not state.job_id:
        return TrialStatus(trial, "queued" if shared else "running", BEHIND if shared else "starting", **common)
    if job and job.state in HELD:
        return TrialStatus(trial, "running", f"{job.state.lower()} by Slurm", **common)
    beat, silent_s = _sign_of_life(trial, state.time)
    common |= {"beat": beat, "left_s": time_left_s(beat, planned(trial.folder)) if beat else None}
    if silent_s > patience_s(trial.folder, beat, row):
        return TrialStatus(trial, "stalled", f"no sign of life for {duration(silent_s)}: see its log", **common)
    return TrialStatus(trial, "running", **common)


def _unknown(trial: Trial, state: TrialState, job: JobState, common: dict[str, Any]) -> TrialStatus:
    """Slurm does not answer: the job may wait, run, or be over."""
    note = "Slurm does not answer"
    common |= {"silence": job.reason}
    if state.status == "running":
        beat, silent_s = _sign_of_life(trial, state.time)
        return TrialStatus(trial, "unknown", f"{note}; last sign of life {duration(silent_s)} ago", **common, beat=beat)
    return TrialStatus(trial, "unknown", note, **common)


def _sign_of_life(trial: Trial, began: float) -> tuple[Heartbeat | None, float]:
    """The last heartbeat of the life that began then, and the seconds since the last sign of life."""
    beat = read_heartbeat(trial.folder)
    if beat and beat.time < began:
        beat = None  # of an earlier attempt
    return beat, silence_s(trial.folder, beat, began)


def _alive(submission: Submission, state: TrialState, job: JobState | None) -> bool:
    """Whether the trial's last job may still run it. A local job lives as long as a process of it on its host."""
    if state.status in LAST_WORDS:
        return False  # its own last word holds, whether or not Slurm can be asked; `interrupted` may be requeued
    if submission.cluster == "slurm":
        return job is None or not job.is_over
    if (state.host or HERE) != HERE:
        return state.status != "interrupted"  # another machine's process cannot be asked
    if submission.cluster == "debug":
        return state.status == "running" and _exists(as_pid(state.pid))
    pids = [as_pid(state.pid), as_pid(submission.job_id)]
    if state.slot:
        pids.pop()  # its job lives on with other workers
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
