"""The state of a chain's own jobs, which pack, submit the trials, and report; trials: jobs.state.trial_status."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.runs.log_files import RAISED, last_attempt, read_tail
from jobs.runs.trial import CHAIN_NOTES, JOB_ID, SWEEP_NAME
from jobs.state.job_ends import note_ends, read_ends, with_noted
from jobs.state.waits import wait_of
from shards.files import append, build, parse_json, read_bounded, read_json_object, write_whole
from slurm.cluster import MISSING, UNKNOWN, JobState, job_states

FOLDER = "chain"
TAIL_LINES = 3
BAD = ("failed", "cancelled", "never")


@dataclass(frozen=True)
class Note:
    """One small job of a chain, as it was submitted."""

    step: str
    job_id: str
    dependency: str
    log: str


@dataclass(frozen=True)
class ChainJob:
    """Where it stands."""

    note: Note
    status: str  # queued | running | done | failed | cancelled | never | unknown
    why: str = ""
    tail: tuple[str, ...] = ()  # the end of a failed one's log


def add_note(folder: Path, note: Note) -> None:
    append(folder / CHAIN_NOTES, json.dumps(asdict(note)) + "\n")


def has_chain(folder: Path) -> bool:
    return (folder / CHAIN_NOTES).is_file()


def end_file(folder: Path, job_id: str) -> Path:
    """Where a job writes down how its steps ended."""
    return folder / f"{job_id}_end.json"


def write_end(folder: Path, job_id: str, module: str, code: int) -> None:
    write_whole(end_file(folder, job_id), json.dumps({"module": module, "code": code}) + "\n")


def forget_end(folder: Path, job_id: str) -> None:
    end_file(folder, job_id).unlink(missing_ok=True)


def chain_jobs(folder: Path, timeout_s: float | None = None) -> list[ChainJob]:
    """The jobs of a sweep's last chain, in their order; none if it has no chain."""
    notes = _latest_notes(_read_notes(folder))
    ends = {note.job_id: _read_end(folder, note) for note in notes}
    states = job_states([job_id for job_id, end in ends.items() if not end], timeout_s)
    known = read_ends(folder)
    note_ends(folder, known, states)
    states = with_noted(states, known, {})
    jobs = [_standing(note, ends[note.job_id], states.get(note.job_id)) for note in notes]
    if (folder / SWEEP_NAME).exists():  # which comes after these two, whether or not somebody still knows their jobs
        return [replace(job, status="done") if _is_before_trials(job) else job for job in jobs]
    return jobs


def _is_before_trials(job: ChainJob) -> bool:
    return job.status == "unknown" and job.note.step in ("pack", "train")


def chain_lines(jobs: Sequence[ChainJob]) -> Iterator[str]:
    """The lines that report a chain; none if all its jobs are done."""
    if all(job.status == "done" for job in jobs):
        return
    yield f"\nchain: {', '.join(f'{job.note.step} {job.status}' for job in jobs)}"
    for job in jobs:
        if job.status != "done":
            yield f"  {job.note.step}: job {job.note.job_id}, {job.why}"
        if job.status in ("failed", "unknown"):
            yield from (f"  | {line}" for line in job.tail)
            yield f"  its log: {job.note.log}"
    if any(job.status in BAD for job in jobs):
        yield "  next: fix that, and run the same `python jobs/chain.py ...` again, which continues with what is there"


def to_rows(jobs: Sequence[ChainJob]) -> list[dict[str, str]]:
    """For a JSON document."""
    return [asdict(job.note) | {"state": job.status, "why": job.why} for job in jobs]


def _read_notes(folder: Path) -> list[Note]:
    """The notes in order; the folder can be a stranger's, so logs are looked for in it alone."""
    notes: list[Note] = []
    path = folder / CHAIN_NOTES
    for line in read_bounded(path).splitlines() if has_chain(folder) else ():
        with contextlib.suppress(ValueError, TypeError):  # a line that a kill cut short
            note = build(Note, parse_json(line, path))
            if JOB_ID.fullmatch(note.job_id):
                notes.append(replace(note, log=str(path.parent / Path(note.log).name)))
    return notes


def _latest_notes(notes: Sequence[Note]) -> list[Note]:
    """The note of each step's latest job since the last pack."""
    start = max((index for index, note in enumerate(notes) if note.step == "pack"), default=0)
    latest = {note.step: note for note in notes[start:]}
    return list(latest.values())


def _read_end(folder: Path, note: Note) -> dict[str, Any]:
    """What the job recorded at its end; {} if it has not ended."""
    with contextlib.suppress(OSError, ValueError):
        return read_json_object(end_file(folder / FOLDER, note.job_id))
    return {}


def _standing(note: Note, end: dict[str, Any], state: JobState | None) -> ChainJob:
    if end:
        code, module = int(end.get("code", 0)), str(end.get("module", ""))
        if code == 0:
            return ChainJob(note, "done")
        return ChainJob(note, "failed", f"python -m {module} ended with exit code {code}", _tail(note))
    if state is None or state.state == UNKNOWN:
        return ChainJob(note, "unknown", f"Slurm does not answer ({state.reason if state else ''})")
    if state.state == MISSING:
        return ChainJob(
            note, "unknown", "Slurm no longer knows it, and it did not record its end: see its log", _tail(note)
        )
    if not state.is_over:
        if (wait := wait_of(state)) and wait.kind == "never":
            return ChainJob(note, "never", f"never starts ({state.reason}): {wait.advice}")
        waits = state.state != "RUNNING"
        return ChainJob(note, "queued" if waits else "running", state.reason or state.state.lower())
    if state.state == "COMPLETED":
        return ChainJob(note, "done")
    if state.state == "CANCELLED":
        waited = f", because it waits for a job that failed ({note.dependency})" if note.dependency else ""
        return ChainJob(note, "cancelled", f"cancelled by somebody, or by Slurm{waited}")
    return ChainJob(note, "failed", f"ended by Slurm: {state.state} {state.reason}".rstrip(), _tail(note))


def _tail(note: Note) -> tuple[str, ...]:
    """The last lines of its step's log."""
    text = last_attempt(read_tail(Path(note.log))).partition(RAISED)[0]
    lines = [line.strip()[:400] for line in text.splitlines() if line.strip()]
    return tuple(line for line in lines if not line.startswith("submitit "))[-TAIL_LINES:]
