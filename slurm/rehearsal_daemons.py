"""The processes of a rehearsal cluster: started into their own sessions, recorded, and ended by record only.

A record is `run/NAME.pid` with the pid and the process's start time in clock ticks since boot. The two
together name one process: a pid that was given to another process since is left alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_S = 0.02


def start_ticks(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if it is gone (a zombie counts as gone)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name in parentheses may hold spaces and parentheses itself; field 3 (state) follows the last one
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def spawn(root: Path, name: str, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground of its own session, and record it as `name`."""
    with (root / "log" / f"{name}.out").open("ab") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(env),
            cwd=root,
            start_new_session=True,
        )
    ticks = start_ticks(process.pid)
    aside = root / "run" / f"{name}.pid.part"
    aside.write_text(f"{process.pid} {ticks or 0}\n")
    aside.replace(root / "run" / f"{name}.pid")
    return process


def recorded(root: Path, pattern: str = "*") -> dict[str, int]:
    """Name -> pid of the recorded processes that still run and are what they were."""
    alive: dict[str, int] = {}
    for path in sorted((root / "run").glob(f"{pattern}.pid")):
        pid, ticks = (int(word) for word in path.read_text().split())
        if ticks and start_ticks(pid) == ticks:
            alive[path.stem] = pid
    return alive


def end(root: Path, pattern: str, first: signal.Signals = signal.SIGTERM, grace_s: float = 5.0) -> None:
    """Signal the recorded processes that match, and kill those still there after the grace period."""
    for sent in (first, signal.SIGKILL):
        for pid in recorded(root, pattern).values():
            _signal(pid, sent)
        if wait_until(lambda: not recorded(root, pattern), grace_s):
            break
    for path in (root / "run").glob(f"{pattern}.pid"):
        path.unlink(missing_ok=True)


def _signal(pid: int, sent: signal.Signals) -> None:
    try:
        os.kill(pid, sent)
    except ProcessLookupError:
        return  # it ended between the look and the signal


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True
