"""Asks Slurm after a signal why the job of this process is ending, and requeues the job.

The signal alone does not say why: Slurm sends TERM at preemption, scancel sends it, and so can anyone else.
A preempted job with a grace time (GraceTime) keeps running until that is over. If it ends earlier, Slurm counts the end
as the job's own failure and does not start it again: the job has to requeue itself.
"""

from __future__ import annotations

import enum
import logging
import re
import signal
import subprocess
import time
from datetime import datetime

from slurm import patience
from slurm.patience import one_line

ASK_TIMEOUT_S = 15.0
REQUEUE_PATIENCE_S = 600.0  # a new slurmctld takes over by then
POLL_S = 1.0
RUNNING_STATES = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "CONFIGURING"})
# each is a single word, and none is chosen by a user
FIELDS = ("State", "StartTime", "EndTime", "PreemptTime", "TimeLimit")

logger = logging.getLogger(__name__)


class Ending(enum.Enum):
    """What Slurm is doing with a job that was told to end."""

    PREEMPTED = enum.auto()  # a job of higher priority replaces it
    TIMED_OUT = enum.auto()  # its time limit is over
    DECIDED = enum.auto()  # somebody cancelled it, or Slurm has requeued it already
    RUNNING = enum.auto()  # nothing: only its processes got a signal
    UNKNOWN = enum.auto()  # Slurm does not say


def ask_ending(job_id: str) -> Ending:
    """Ask Slurm once what it is doing with the running job `12` or `12_3`."""
    columns = ",".join(f"{name}:40" for name in FIELDS)
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--Format={columns}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.debug("squeue does not say what becomes of job %s: %s", job_id, error)
        return Ending.UNKNOWN
    return parse_ending(done.stdout) if done.returncode == 0 else Ending.UNKNOWN


def await_ending(job_id: str, patience_s: float) -> Ending:
    """Ask until Slurm answers; UNKNOWN if it has not after `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    while (ending := ask_ending(job_id)) is Ending.UNKNOWN and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return ending


def parse_ending(line: str) -> Ending:
    """The ending that follows from squeue's line of FIELDS for one job."""
    words = line.split()
    if len(words) != len(FIELDS):
        return Ending.UNKNOWN
    state, limit_s = words[0], parse_limit_s(words[4])
    start, end, preempted = (parse_time(word) for word in words[1:4])
    if state in RUNNING_STATES:
        return Ending.RUNNING if preempted is None else Ending.PREEMPTED
    # It is over. Preemption without a grace time, or at the end of one, and in a partition that cancels what it
    # preempts, ends the job at that very moment; scancel within the grace time ends it at a later one.
    if preempted is not None and end is not None and abs((end - preempted).total_seconds()) <= 1:
        return Ending.PREEMPTED
    if start is not None and end is not None and limit_s is not None and (end - start).total_seconds() >= limit_s:
        return Ending.TIMED_OUT
    return Ending.DECIDED


def parse_time(word: str) -> datetime | None:
    """`2026-11-25T03:16:52`; None for `N/A` and the like."""
    try:
        return datetime.fromisoformat(word)
    except ValueError:
        return None


def parse_limit_s(word: str) -> int | None:
    """Seconds of Slurm's `[days-]hours:minutes:seconds` or `minutes:seconds`; None if there is no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", word)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def node_shuts_down() -> bool:
    """Whether this machine is being shut down, which sends TERM to all processes before Slurm learns of it."""
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"


def requeue(job_id: str) -> str:
    """Requeue the running job of this process; returns why Slurm refuses, empty if it does not.

    Slurm then ends the job: it sends TERM to all its processes, scontrol among them.
    """
    try:
        patience.call(["scontrol", "requeue", job_id], REQUEUE_PATIENCE_S)
    except subprocess.CalledProcessError as error:
        # it is in the queue (an earlier answer was lost), or the end has come already
        if error.returncode < 0 or "pending execution" in error.stderr:
            return ""
        return one_line(error.stderr) or f"scontrol ended with exit code {error.returncode}"
    except OSError as error:
        return str(error)
    return ""


def requeue_elsewhere(job_id: str, node: str) -> str:
    """Requeue the running job of this process, excluding `node`; returns why Slurm refuses, empty if it does not.

    Slurm changes the nodes of a waiting job only, and the requeue ends this one: the process and its scontrol ignore
    TERM from here on, which leaves KillWait's time for the change.
    """
    try:
        left_out, wanted, partition = _ask("squeue", "--noheader", f"--jobs={job_id}", "--format=%x|%D|%P").split("|")
        excluded = [*_hostnames("" if left_out == "(null)" else left_out), node]
        others = set(_ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N").split())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"Slurm does not say which other nodes there are: {getattr(error, 'stderr', '') or error}".strip()
    if len(others - set(excluded)) < int(wanted):
        return f"partition {partition} has no other node to try"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if refusal := requeue(job_id):
        return refusal
    try:
        _ask("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(dict.fromkeys(excluded))}")
    except (OSError, subprocess.SubprocessError) as error:  # it is in the queue all the same
        logger.warning("%s is not left out by job %s: %s", node, job_id, getattr(error, "stderr", "") or error)
    return ""


def _hostnames(nodes: str) -> list[str]:
    return _ask("scontrol", "show", "hostnames", nodes).split() if nodes else []


def _ask(*command: str) -> str:
    return patience.call(command, ASK_TIMEOUT_S).strip()
