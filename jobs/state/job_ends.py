"""How a sweep's jobs ended, in Slurm's words, kept in its folder: Slurm forgets them, often within minutes.

Without accounting squeue knows a job for MinJobAge (five minutes by default) after its end; with it, sacct's rows may
be purged. The first command that sees how a job ended, where its trial has no result, writes it down for later ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.files import append, parse_json, read_bounded
from slurm.cluster import FINISHED_STATES, MISSING, JobState

ENDS_NAME = "job_ends.jsonl"


@dataclass(frozen=True)
class JobEnd:
    """Slurm's state of a job that was over, and when it was recorded."""

    state: JobState
    time: float  # seconds since 1970


def read_ends(folder: Path) -> dict[str, JobEnd]:
    """Job id -> how it ended, by the last line of each job."""
    ends: dict[str, JobEnd] = {}
    path = folder / ENDS_NAME
    with contextlib.suppress(OSError, ValueError):
        for line in read_bounded(path).splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut short
                row: Any = parse_json(line, path)
                state = JobState(**{field.name: str(row[field.name]) for field in fields(JobState)})
                ends[str(row["job_id"])] = JobEnd(state, float(row["time"]))
    return ends


def note_ends(folder: Path, known: Mapping[str, JobEnd], states: Mapping[str, JobState]) -> None:
    """Record ends that are new; does nothing in a folder that belongs to somebody else."""
    ends = {job_id: state for job_id, state in states.items() if state.state in FINISHED_STATES}
    new = {job_id: state for job_id, state in ends.items() if _says_more(state, known.get(job_id))}
    if not new:
        return
    now = time.time()
    lines = "".join(
        json.dumps({"job_id": job_id, **asdict(state), "time": now}) + "\n" for job_id, state in new.items()
    )
    with contextlib.suppress(OSError):
        if folder.stat().st_uid == os.geteuid():
            append(folder / ENDS_NAME, lines)


def with_noted(
    states: Mapping[str, JobState], known: Mapping[str, JobEnd], began: Mapping[str, float]
) -> dict[str, JobState]:
    """The states, with the noted end of each job that Slurm no longer knows.

    began: when a job's trial last began, by job id; if that is after the end was noted, somebody had requeued the job
    """
    forgotten = {job_id: known[job_id] for job_id in forgotten_jobs(states, known)}
    noted = {job_id: end.state for job_id, end in forgotten.items() if began.get(job_id, 0.0) <= end.time}
    return {**states, **noted}


def forgotten_jobs(states: Mapping[str, JobState], known: Mapping[str, JobEnd]) -> set[str]:
    return {job_id for job_id, state in states.items() if state.state == MISSING and job_id in known}


def _says_more(state: JobState, noted: JobEnd | None) -> bool:
    """sacct knows a job's exit code, squeue the reason of its end."""
    if noted is None:
        return True
    changed = noted.state.state != state.state
    return changed or bool(state.exit_code and not noted.state.exit_code)
