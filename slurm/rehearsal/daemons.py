"""The processes of a rehearsal cluster: started in their own sessions, recorded, and ended by these records only.

A record is `run/NAME.pid` with the pid and the process's start time in clock ticks since boot. The two
together name one process: a pid that was given to another process since is left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

POLL_S = 0.02

# Popen objects of this process's clusters, kept so that their children can be waited for.
_children: dict[Path, list[subprocess.Popen[bytes]]] = {}


def start_ticks(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if it is gone (a zombie counts as gone)."""
    parent_and_ticks = _parent_and_ticks(pid)
    return parent_and_ticks[1] if parent_and_ticks else None


def _parent_and_ticks(pid: int) -> tuple[int, int] | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name in parentheses may hold spaces and parentheses itself; field 3 (state) follows the last one
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def spawn(root: Path, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
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
    _children.setdefault(root, []).append(process)
    ticks = start_ticks(process.pid)
    aside = root / "run" / f"{name}.pid.part"
    aside.write_text(f"{process.pid} {ticks or 0}\n")
    aside.replace(root / "run" / f"{name}.pid")


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


def descendants(pids: Iterable[int]) -> dict[int, int]:
    """Pid -> start ticks of all that the processes started, and what that started; parents come first."""
    children: dict[int, list[tuple[int, int]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if parent_and_ticks := _parent_and_ticks(int(folder.name)):
            children.setdefault(parent_and_ticks[0], []).append((int(folder.name), parent_and_ticks[1]))
    tree: dict[int, int] = {}
    generation = list(pids)
    while generation:
        born = [child for pid in generation for child in children.get(pid, [])]
        tree |= born
        generation = [pid for pid, _ in born]
    return tree


def freeze_descendants(pids: Iterable[int]) -> dict[int, int]:
    """SIGSTOP all descendants of the processes, so that none can react to the kill that follows, or escape it."""
    tops = list(pids)
    frozen: dict[int, int] = {}
    while new := descendants(tops).items() - frozen.items():
        frozen |= new
        for pid, _ in new:
            _signal(pid, signal.SIGSTOP)
    return frozen


def kill_all(processes: Mapping[int, int | None], timeout_s: float = 5.0) -> bool:
    """SIGKILL to the processes (pid -> start ticks); whether all have ended."""

    def alive() -> list[int]:
        return [pid for pid, ticks in processes.items() if ticks and start_ticks(pid) == ticks]

    for pid in alive():
        _signal(pid, signal.SIGKILL)
    return wait_until(lambda: not alive(), timeout_s)


def kill_with_children(root: Path, name: str) -> None:
    """SIGKILL to the recorded process and to what it started."""
    below = descendants(recorded(root, name).values())
    end(root, name, signal.SIGKILL)
    kill_all(below)


def await_ready(root: Path, name: str, condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until the daemon does what the condition asks; ValueError with the logs if it ends, or takes too long."""
    wait_until(lambda: condition() or name not in recorded(root, name), timeout_s)
    if not condition():
        raise ValueError(f"{name} did not start:\n{log_tails(root)}")


def reap(root: Path) -> None:
    """Wait for this process's own children among the cluster's processes, which have been told to end."""
    for process in _children.pop(root, []):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def log_tails(root: Path, lines: int = 8) -> str:
    logs = sorted((root / "log").glob("*"))
    tails = [(log.name, log.read_text(errors="replace").splitlines()[-lines:]) for log in logs]
    return "\n".join(f"{name}: {line}" for name, tail in tails for line in tail)


def listens(port: int) -> bool:
    """Whether somebody of this machine listens on the TCP port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _signal(pid: int, sent: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
        os.kill(pid, sent)


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True
