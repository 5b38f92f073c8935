"""Calls Slurm's commands with patience: logs and retries transient errors, and raises Unavailable in the end.

The user is not to blame for a cluster that is busy, restarts, or holds as many jobs as it can. The messages are Slurm's
own (slurm_errno.c); any other message is taken for a refusal that a retry would meet again.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from shards.command import Unavailable

PATIENCE_S = 60.0  # for one command, all tries together
QUIET_S = 5.0  # how long a command may take before a warning says what it waits for
PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # the last one repeats
NO_MORE_JOBS = "Resource temporarily unavailable"  # EAGAIN: the cluster has MaxJobCount jobs

TRANSIENT = re.compile(
    "|".join(
        (
            NO_MORE_JOBS,
            "temporarily unable to accept job",
            "Job creation temporarily unavailable",
            "Unable to create job record, try again",
            "job queue full",
            "Socket timed out",
            "Unable to contact slurm controller",
            "Communication (connection|shutdown) failure",
            "Message (send|receive) failure",
            "Slurm backup controller in standby mode",
            "Zero Bytes were transmitted or received",
            "Transport endpoint is not connected",
            "Unexpected message received",  # of scontrol requeue, where slurmctld is away
            "Connection (refused|timed out|reset by peer)",
            "No route to host",
            "Network is unreachable",
            "backing off|backoff|rate limit",
        )
    ),
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What a command printed, and how it ended."""

    stdout: str
    stderr: str
    returncode: int | None  # None: it did not answer in time, and was ended

    @property
    def complaint(self) -> str:
        """In one line, without the command's name."""
        return one_line(self.stderr) or ("no answer" if self.returncode is None else f"exit code {self.returncode}")

    @property
    def passes(self) -> bool:
        """Whether the error is transient: a later try may succeed."""
        return self.returncode is None or bool(TRANSIENT.search(self.stderr))


def call(command: Sequence[str], patience_s: float | None = None) -> str:
    """The output of a Slurm command, retried while its error is transient: Slurm may receive it twice.

    Raises subprocess.CalledProcessError if it is refused, Unavailable if patience ends, and FileNotFoundError.
    """
    deadline = Deadline(patience_s)
    for pause_s in pauses():
        reply = run(command, deadline)
        if reply.returncode == 0:
            return reply.stdout
        if not reply.passes:
            raise subprocess.CalledProcessError(reply.returncode or 1, list(command), reply.stdout, reply.stderr)
        deadline.wait(pause_s, f"{command[0]}: {reply.complaint}")
    raise AssertionError("pauses never end")


def run(command: Sequence[str], deadline: Deadline, env: Mapping[str, str] | None = None) -> Reply:
    """One try, ended at the deadline. Logs what a slow command waits for: sbatch retries on its own."""
    # files, not pipes: what it says can be read while it runs
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        reported = ""
        try:
            while True:
                try:
                    process.wait(min(QUIET_S, deadline.left_s))
                    break
                except subprocess.TimeoutExpired:
                    if deadline.left_s <= 0:
                        return Reply("", _text(err), None)
                    waits_for = one_line(_text(err)) or "no answer yet"
                    if waits_for != reported:
                        logger.warning("%s: %s; waiting for up to %.0f s", command[0], waits_for, deadline.left_s)
                    reported = waits_for
        finally:
            _end(process)
        return Reply(_text(out), _text(err), process.returncode)


class Deadline:
    """The end of the patience for all tries together."""

    def __init__(self, patience_s: float | None = None) -> None:
        self.patience_s = PATIENCE_S if patience_s is None else patience_s
        self._end = time.monotonic() + self.patience_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def wait(self, pause_s: float, complaint: str) -> None:
        """Log the retry, and pause. Raises Unavailable if no time is left for that."""
        if self.left_s <= pause_s:
            raise Unavailable(f"{complaint} (tried for {self.patience_s:.0f} s)")
        logger.warning("%s; trying again in %.0f s", complaint, pause_s)
        time.sleep(pause_s)


def pauses() -> Iterator[float]:
    yield from PAUSES_S
    while True:
        yield PAUSES_S[-1]


def one_line(stderr: str) -> str:
    """A Slurm command's complaint without its name on every line: `sbatch: error: ...`."""
    lines = [re.sub(r"^\w+: (?:error|fatal): ", "", line.strip()) for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def _text(file: IO[bytes]) -> str:
    """The whole file while the command writes: pread leaves alone the offset, which the command shares."""
    number = file.fileno()
    return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs: our patience, or the user's, is over."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
