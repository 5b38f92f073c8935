"""Processes of this machine that run trials, told from others that were given their pids."""

from __future__ import annotations

import os
import socket
from pathlib import Path

HERE = socket.gethostname()


def command_line(pid: int) -> list[str]:
    """The arguments of a running process; [] if it is gone or a zombie."""
    try:
        return [part for part in Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0") if part]
    except OSError:
        return []


def runs_trials(pid: int) -> bool:
    """Whether the process is one of submitit's: the controller of a job, or a rank."""
    return any("submitit" in part for part in command_line(pid))


def works_for(pid: int, logs: Path) -> bool:
    """Whether the process is submitit's and was started for this folder of logs by this user."""
    words = command_line(pid)
    try:
        if Path(f"/proc/{pid}").stat().st_uid != os.getuid():
            return False
        at = Path(f"/proc/{pid}/cwd").resolve()
    except OSError:
        return False
    return any("submitit" in word for word in words) and (at / words[-1]).resolve() == logs.resolve()


def parent_of(pid: int) -> int:
    """0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def is_launcher(pid: int) -> bool:
    """Whether the process is `python jobs/sweep.py` of this user."""
    try:
        mine = Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    except OSError:
        return False
    return mine and any(Path(word).parts[-2:] == ("jobs", "sweep.py") for word in command_line(pid))


def as_pid(word: object) -> int:
    """A job id or a state's pid as a number that can name a process; 0 if it cannot."""
    text = str(word)
    return int(text) if text.isdecimal() and int(text) > 1 else 0
