"""Slurm's states of a sweep's jobs, kept for a few seconds, because many terminals may watch one sweep."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from shards.files import build, read_json, write_whole
from slurm.cluster import UNKNOWN, JobState, job_states

ANSWER_NAME = ".slurm.json"
LOCK_NAME = ".slurm.lock"
MAX_AGE_S = 5.0
TIMEOUT_S = 4.0  # of squeue and of sacct each; without slurmctld, squeue alone takes 38 s to give up


@dataclass(frozen=True)
class Answer:
    """The states of jobs, when they were asked for, and who answered."""

    states: dict[str, JobState] = field(default_factory=dict)
    time: float = 0.0  # seconds since 1970; 0 = nothing was asked

    @property
    def source(self) -> str:
        """`squeue`, `sacct` or `squeue, sacct`; `none` if Slurm did not answer; empty if there was nothing to ask."""
        names = dict.fromkeys(state.source for state in self.states.values())
        return ", ".join(sorted(names, reverse=True))

    @property
    def why(self) -> str:
        """Why Slurm did not answer."""
        return next((state.reason for state in self.states.values() if state.state == UNKNOWN), "")

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.time) if self.time else 0.0


def ask(
    folder: Path,
    job_ids: Iterable[str],
    max_age_s: float = MAX_AGE_S,
    timeout_s: float = TIMEOUT_S,
    keep: bool = True,
) -> Answer:
    """The states of jobs, by an answer in `folder` that is at most `max_age_s` old, or asked for and left there.

    If several processes ask at once, one queries Slurm and the others read its answer. A process that may not write
    there queries Slurm directly.
    keep: leave the answer there; not for a few of the sweep's jobs.
    """
    wanted = list(dict.fromkeys(job_ids))
    if not wanted:
        return Answer()
    if answer := _read(folder, wanted, max_age_s):
        return answer
    if not keep:
        return _asked(wanted, timeout_s)
    with contextlib.suppress(Timeout, OSError), FileLock(folder / LOCK_NAME, timeout=timeout_s / 4):
        if answer := _read(folder, wanted, max_age_s):
            return answer
        before = _last_change(folder)
        answer = _asked(wanted, timeout_s)
        if _last_change(folder) == before:  # else the answer may be of the time before the change
            _write(folder, answer)
        return answer
    return _asked(wanted, timeout_s)


def forget(folder: Path) -> None:
    """Drop the answer after a command changed the jobs, also an answer that another process is waiting for."""
    _write(folder, Answer({}, time.time()))


def _asked(wanted: Sequence[str], timeout_s: float) -> Answer:
    now = time.time()  # not after: Slurm may take seconds to say how things stood before
    return Answer(job_states(wanted, timeout_s), now)


def _write(folder: Path, answer: Answer) -> None:
    content = {"time": answer.time, "states": {name: asdict(state) for name, state in answer.states.items()}}
    with contextlib.suppress(OSError):
        write_whole(folder / ANSWER_NAME, json.dumps(content) + "\n")


def _last_change(folder: Path) -> tuple[int, int] | None:
    """Inode and modification time of the answer in the folder, which identify it; None if there is none."""
    try:
        stat = (folder / ANSWER_NAME).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _read(folder: Path, wanted: Sequence[str], max_age_s: float) -> Answer | None:
    try:
        content = read_json(folder / ANSWER_NAME)
        if abs(time.time() - content["time"]) > max_age_s:  # of the future: another machine's clock
            return None
        return Answer({name: build(JobState, content["states"][name]) for name in wanted}, float(content["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
