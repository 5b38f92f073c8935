"""Why a trial ended: from its own state, Slurm's state of its job, and the ends of its ranks' logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.runs.log_files import Traceback, fatal_traceback, last_attempt, own_part, rank_logs, read_tail
from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import NOT_BEGUN, TrialState
from jobs.state.causes import ADVICE, DAEMON_WORDS, DAEMONS, ERRORS, PEER, RETRYABLE, SLURM_STATES
from jobs.state.liveness import planned_epochs
from jobs.state.waits import UNPLACEABLE_REASON
from shards.cause import Cause
from shards.command import typed
from shards.terminal import duration
from slurm.cluster import JobState

CLEAN_NOW = ("--older-than", "0m", "--checkpoints-only")  # what frees most, at once


@dataclass(frozen=True)
class Diagnosis:
    """Why a trial ended, and what to do."""

    cause: Cause
    advice: str
    retryable: bool  # another try, perhaps with a small change, may succeed
    signature: str  # equal for trials that failed in the same way
    traceback: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known of a trial whose job is over."""

    state: TrialState = NOT_BEGUN  # as this job wrote it
    host: str = ""
    job: JobState | None = None
    logs: tuple[str, ...] = ()  # the ends of the logs of all ranks, of the job's last attempt
    epochs_done: int = 0
    epochs: int = 0
    epoch_s: float | None = None  # one epoch's training
    used_s: float | None = None  # from the trial's start to the end of its log
    log_is_missing: bool = False  # of a job on Slurm, which opens it before anything else
    waited: bool = False  # its job ran several trials, and ended before this one's turn
    sweep: str = "SWEEP"


@dataclass(frozen=True)
class LastJob:
    """The last job of a trial, as the trial's folder and Slurm show it."""

    trial: Trial
    submission: Submission
    job: JobState | None  # None without Slurm
    state: TrialState  # as this job wrote it
    row: dict[str, Any]  # the last one of metrics.jsonl
    shared: bool = False  # the job had other trials too


def gather(last: LastJob) -> Evidence:
    """What a trial without a result and its logs say about its last job, which must be over."""
    trial, submission, state, shared = last.trial, last.submission, last.state, last.shared
    paths = rank_logs(trial, submission) if state.job_id or not shared else []  # else the log is about others
    texts = [own_part(last_attempt(read_tail(path)), trial.id) for path in paths]
    if state.slot:  # of several trials at once: what Slurm says of the job is in the job's own log
        texts.append(daemon_lines(last_attempt(read_tail(Path(submission.log)))))
    used_s = max((path.stat().st_mtime for path in paths), default=0.0) - state.time
    running = state.status == "running"
    return Evidence(
        state=state,
        host=state.host or (last.job.nodes if last.job else ""),
        job=last.job,
        logs=tuple(texts),
        epochs_done=int(last.row.get("epoch", 0)),
        epochs=planned_epochs(trial.folder),
        epoch_s=last.row.get("perf/seconds"),
        used_s=used_s if running and paths and used_s > 0 and not state.restarts else None,
        log_is_missing=submission.cluster == "slurm" and not rank_logs(trial, submission),
        waited=shared and not state.job_id,
        sweep=str(trial.folder.parents[1]),
    )


def diagnose(evidence: Evidence) -> Diagnosis:
    """The cause by the first source that knows it, and what to do about it (jobs.state.causes)."""
    tracebacks = [traceback for text in evidence.logs if (traceback := fatal_traceback(text))]
    fatal = min(tracebacks, key=lambda traceback: bool(PEER.search(traceback.error)), default=None)
    cause = _cause(evidence, tracebacks, fatal)
    advice = _timeout_advice(evidence) if cause is Cause.TIMEOUT else ADVICE[cause]
    host = evidence.host or "its node"
    has_traceback = cause in (Cause.CODE, Cause.LAUNCH, Cause.UNKNOWN)
    signature = str(cause)
    if cause is Cause.NODE_FAILURE:
        signature = f"{cause} {host}"
    elif fatal and has_traceback:
        signature = f"{fatal.kind} at {fatal.frame}" if fatal.frame else fatal.error.partition("\n")[0][:120]
    return Diagnosis(
        cause=cause,
        advice=advice.format(
            host=host,
            folder=evidence.sweep,
            clean=f"`{typed('jobs/clean.py', evidence.sweep, *CLEAN_NOW, '--dry-run')}`",
        ),
        retryable=RETRYABLE[cause],
        signature=signature,
        traceback=fatal.text if fatal and has_traceback else "",
    )


def _cause(evidence: Evidence, tracebacks: Sequence[Traceback], fatal: Traceback | None) -> Cause:
    state, job = evidence.state, evidence.job
    failed, interrupted = state.status == "failed", state.status == "interrupted"
    named = None if state.cause is Cause.UNKNOWN else state.cause
    errors = [error for traceback in tracebacks for error in traceback.errors]
    if failed and state.cause is None:
        errors.append(state.error)
    in_slurm = SLURM_STATES.get(job.state) if job else None
    if job and job.reason == UNPLACEABLE_REASON:
        in_slurm = Cause.UNPLACEABLE
    in_logs = _first(DAEMONS, [daemon_lines(text) for text in evidence.logs])
    of_job = (Cause.HOST_MEMORY, Cause.NODE_FAILURE)
    only_peer = not failed or _lost_peer(state)
    rules: tuple[Callable[[], Cause | None], ...] = (
        lambda: named if failed else None,
        # its own error is nearer to the cause than the end of a job that other trials shared
        lambda: in_slurm if only_peer and in_slurm in of_job else None,
        lambda: in_logs if only_peer and in_logs in of_job else None,
        lambda: _first(ERRORS, errors) if not interrupted else None,
        lambda: in_slurm if not failed else None,
        lambda: named if interrupted else None,
        lambda: in_logs if in_logs is not Cause.LAUNCH and not failed else None,
        lambda: Cause.CANCELLED if interrupted else None,
        lambda: _of_exception(state, fatal),
        lambda: Cause.KILLED if _killed(evidence) else None,
        lambda: Cause.UNSEEN_FOLDER if _folder_is_unseen(evidence) else None,
        lambda: Cause.NEVER_BEGAN if evidence.waited else None,
        lambda: Cause.LAUNCH if not state.status and (in_logs is Cause.LAUNCH or _ended_badly(evidence)) else None,
    )
    return next((cause for rule in rules if (cause := rule())), Cause.UNKNOWN)


def daemon_lines(text: str) -> str:
    """The lines of a log that Slurm's daemons, the shell and the interpreter wrote; few, and quick to search."""
    return "\n".join(line for line in text.splitlines() if line.startswith(DAEMON_WORDS))


def _first(table: Sequence[tuple[Cause, re.Pattern[str]]], texts: Sequence[str]) -> Cause | None:
    return next((cause for cause, pattern in table if any(pattern.search(text) for text in texts)), None)


def _lost_peer(state: TrialState) -> bool:
    """Whether the first rank failed only because another rank was gone, by its own or torch's message."""
    return state.cause is Cause.UNKNOWN or (state.cause is None and bool(PEER.search(state.error)))


def _of_exception(state: TrialState, fatal: Traceback | None) -> Cause | None:
    failed = state.status == "failed" and state.error
    if state.status == "done" or not (fatal or failed):
        return None
    if PEER.search(fatal.error) if fatal else _lost_peer(state):
        return Cause.UNKNOWN
    return Cause.CODE if state.status else Cause.LAUNCH


def _killed(evidence: Evidence) -> bool:
    """Whether SIGKILL ended it; or it is gone, in a local job, whose exit code nobody keeps."""
    exit_code = evidence.job.exit_code if evidence.job else ""
    by_signal = exit_code.endswith(":9") or exit_code.startswith("137:")
    is_gone = evidence.state.status == "running" and (evidence.job is None or evidence.job.state == "FAILED")
    return by_signal or is_gone


def _folder_is_unseen(evidence: Evidence) -> bool:
    """Slurm ends a job at once whose log it cannot open on the node."""
    failed = evidence.job is not None and evidence.job.state == "FAILED"
    return failed and not evidence.state.status and evidence.log_is_missing


def _ended_badly(evidence: Evidence) -> bool:
    if evidence.job is None:
        return any(evidence.logs)
    return evidence.job.state == "FAILED"


def _timeout_advice(evidence: Evidence) -> str:
    """Advice that names the time that the whole trial would need."""
    done, epochs = evidence.epochs_done, evidence.epochs
    if not done:
        return "its time was up before it finished an epoch: raise --timeout-min"
    if not epochs:
        return f"its time was up after {done} epochs: raise --timeout-min"
    if evidence.used_s:
        needed = f"the whole trial needs about {duration(evidence.used_s / done * epochs)}"
        return f"its time was up: {done} of {epochs} epochs took {duration(evidence.used_s)}, {needed} (--timeout-min)"
    if evidence.epoch_s:
        needed = duration(evidence.epoch_s * epochs)
        return f"its time was up after {done} of {epochs} epochs: training alone needs about {needed} (--timeout-min)"
    return f"its time was up after {done} of {epochs} epochs: raise --timeout-min"
