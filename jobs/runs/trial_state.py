"""state.json of a trial: what its job last wrote, and every command on the login node reads."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from petseg.run_folder.layout import warn_once
from shards.cause import Cause
from shards.files import NotRegular, read_json_object, require_own_folder, write_whole

STATE_NAME = "state.json"
Status = Literal["", "running", "done", "pruned", "failed", "interrupted"]
LAST_WORDS: tuple[Status, ...] = ("done", "pruned", "failed")  # a job that was interrupted may be requeued


@dataclass(frozen=True)
class TrialState:
    """A trial's state as a job last wrote it; empty values if no job has begun it."""

    status: Status = ""
    host: str = ""
    job_id: str = ""
    pid: int = 0  # of the process that wrote it
    restarts: int = 0
    slot: int = 0  # the worker that trains it, from 1, where its job trains several trials at once
    at_once: int = 1  # how many those are
    error: str = ""  # why it failed or was interrupted, for people
    cause: Cause | None = None  # the same for commands, where the process itself knew it
    time: float = 0.0  # when it was written, seconds since 1970

    def of_job(self, job_id: str) -> TrialState:
        """This state if that job wrote it, else that of a trial which has not begun."""
        return self if self.job_id == job_id else NOT_BEGUN


NOT_BEGUN = TrialState()


def read_state(folder: Path) -> TrialState:
    """The state in a trial's folder. An unreadable file counts as missing, and invalid values are left out.

    The folder can be a stranger's.
    """
    advice = "delete it; until then the trial counts as not begun, unless it has a result"
    try:
        content = read_json_object(folder / STATE_NAME, advice)
    except (FileNotFoundError, NotADirectoryError):
        return NOT_BEGUN
    except (ValueError, NotRegular) as error:  # the other trials are still shown
        warn_once(str(error))
        return NOT_BEGUN
    values = {name: value for name, value in content.items() if _is_valid(name, value)}
    if "cause" in values:
        values["cause"] = Cause(values["cause"])
    return TrialState(**values)


def _is_valid(name: str, value: Any) -> bool:
    """Whether a state can have this value; false for unknown fields."""
    match name:
        case "host" | "job_id" | "error":
            return isinstance(value, str)
        case "pid" | "restarts" | "slot" | "at_once":
            return type(value) is int and 0 <= value < 2**31
        case "status" | "cause":
            return value in (get_args(Status) if name == "status" else list(Cause))
        case "time":
            return type(value) in (int, float) and abs(value) < 2**53  # neither infinite nor NaN
    return False


def write_state(state: TrialState, folder: Path) -> None:
    """Write it as of now, less the fields that do not apply to the trial."""
    require_own_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = asdict(replace(state, time=time.time()))
    for name in ("slot", "at_once", "error", "cause"):
        if content[name] == getattr(TrialState, name):  # its default
            del content[name]
    write_whole(folder / STATE_NAME, json.dumps(content, indent=2) + "\n")
