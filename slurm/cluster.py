"""Reads from Slurm: the states of jobs, partitions and limits. Guesses nothing.

Works with accounting off (sacct fails) and without Slurm (states are UNKNOWN).
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shards.command import Unavailable
from slurm import patience
from slurm.patience import one_line

CLIENT_TIMEOUT_S = 60.0
LOOK_S = 20.0  # patience for questions whose answer is not essential
SLURM_DEFAULT_MAX_ARRAY_SIZE = 1001

# Slurm's states of a job that will not run again under this id unless somebody requeues it.
FINISHED_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED"} | {"TIMEOUT"}
)
MISSING = "MISSING"  # Slurm answered, and does not know the job
UNKNOWN = "UNKNOWN"  # Slurm did not answer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobState:
    """One job's state, in Slurm's words or MISSING or UNKNOWN, and who said so."""

    state: str
    reason: str  # why it waits, or why nothing is known; empty if there is nothing to say
    nodes: str  # Slurm's short form, such as node[1-2]
    source: str  # squeue | sacct | none
    exit_code: str = ""  # sacct's `CODE:SIGNAL` of the batch script, such as 1:0 or 0:9; empty if only squeue was asked

    @property
    def is_over(self) -> bool:
        """Whether Slurm is sure that the job neither runs nor waits; UNKNOWN is not over.

        A job that only sacct knows is over whatever its state: squeue, which answered, no longer has it (accounting
        keeps a job as RUNNING for ever if it missed its end).
        """
        return self.state in FINISHED_STATES or self.state == MISSING or self.source == "sacct"


def job_states(job_ids: Iterable[str], timeout_s: float | None = None) -> dict[str, JobState]:
    """The state of every job asked for (`12` or `12_3`), by one call to squeue and at most one to sacct.

    A job that Slurm does not know is MISSING; if Slurm cannot be asked every state is UNKNOWN, source `none`.
    timeout_s: of each of the two calls, which are not retried; if not given, squeue is retried with patience.
    """
    wanted = list(dict.fromkeys(job_ids))
    if not wanted:
        return {}
    known, refusal = _ask_squeue(wanted, timeout_s)
    if refusal:
        return {job_id: JobState(UNKNOWN, refusal, "", "none") for job_id in wanted}
    if any(job_id not in known for job_id in wanted):
        known = _ask_sacct([job_id for job_id in wanted if job_id not in known], timeout_s) | known
    missing = JobState(MISSING, "neither squeue nor sacct knows it", "", "squeue")
    return {job_id: known.get(job_id, missing) for job_id in wanted}


def jobs_by_token(tokens: Sequence[str], patience_s: float | None = None) -> dict[tuple[str, int], str]:
    """(token, place in the array; 0 without one) -> id of this user's jobs that carry one of these tokens.

    In their name without its prefix, or in their comment, which a site may replace. Raises Unavailable if squeue does
    not answer, and another OSError if it cannot be asked at all.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%j|%k"]
    try:
        lines = patience.call(command, patience_s).splitlines()
    except subprocess.CalledProcessError as error:
        raise OSError(f"squeue does not say which jobs there are: {one_line(error.stderr) or error}") from None
    jobs = {}
    for job_id, _, words in (line.partition("|") for line in lines):
        for token in tokens:
            if token.rpartition(":")[2] in words:
                jobs[token, int(job_id.partition("_")[2] or 0)] = job_id.strip()
    return jobs


def partitions() -> list[str]:
    """The partitions' names, the default one first; empty if Slurm does not answer."""
    try:
        return parse_partitions(patience.call(["sinfo", "--noheader", "--format=%P"], LOOK_S))
    except (OSError, subprocess.SubprocessError):
        return []


def node_names() -> dict[str, str]:
    """The nodes' names, each with the name of its host, which may be another; empty if Slurm does not answer."""
    try:
        return parse_nodes(patience.call(["sinfo", "--Node", "--noheader", "--format=%N|%n"], LOOK_S))
    except (OSError, subprocess.SubprocessError):
        return {}


def max_array_size(patience_s: float | None = None) -> int:
    """How many tasks one job array may have; Slurm's default if it cannot be asked.

    Raises Unavailable if it does not answer now: with a wrong guess sbatch would refuse the array.
    """
    try:
        return parse_max_array_size(patience.call(["scontrol", "show", "config"], patience_s))
    except (FileNotFoundError, PermissionError, subprocess.CalledProcessError):
        return SLURM_DEFAULT_MAX_ARRAY_SIZE


def parse_squeue(text: str) -> dict[str, JobState]:
    """Lines of `squeue --array --format=%i|%T|%r|%N`."""
    rows = [line.split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
    return {
        job_id.strip(): JobState(state, "" if reason == "None" else reason, nodes.strip(), "squeue")
        for job_id, state, reason, nodes in rows
    }


def parse_sacct(text: str) -> dict[str, JobState]:
    """Lines of `sacct --parsable2 --allocations --format=JobID,State,NodeList,ExitCode`.

    Waiting tasks of an array share a line (`12_[3-9]`) and are left out: squeue names them one by one.
    """
    rows = [line.split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
    states = {}
    for job_id, state, nodes, exit_code in rows:
        word, _, rest = state.partition(" ")  # "CANCELLED by 1000"
        states[job_id] = JobState(word, rest, "" if nodes == "None assigned" else nodes, "sacct", exit_code.strip())
    return {job_id: state for job_id, state in states.items() if "[" not in job_id}


def parse_partitions(text: str) -> list[str]:
    """Lines of `sinfo --format=%P`, in which `*` marks the default."""
    names = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    return [name.rstrip("*") for name in sorted(names, key=lambda name: not name.endswith("*"))]


def parse_nodes(text: str) -> dict[str, str]:
    """Lines of `sinfo --Node --format=%N|%n`: NODE|HOST, once for each partition of the node."""
    pairs = (line.split("|", 1) for line in text.splitlines() if "|" in line)
    return {name.strip(): host.strip() for name, host in pairs}


def parse_facts(line: str) -> dict[str, str]:
    """A line of `scontrol show ... --oneliner`: NAME=VALUE, with a space between."""
    return dict(re.findall(r"(\S+?)=(\S*)", line))


def parse_max_array_size(text: str) -> int:
    """The line `MaxArraySize = 1001` of `scontrol show config`."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else SLURM_DEFAULT_MAX_ARRAY_SIZE


def _ask_squeue(job_ids: Sequence[str], timeout_s: float | None) -> tuple[dict[str, JobState], str]:
    """What squeue knows, and why it could not be asked (empty if it could)."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N"]
    command.append(f"--jobs={_array_ids(job_ids)}")
    try:
        return parse_squeue(patience.call(command) if timeout_s is None else _call(command, timeout_s)), ""
    except FileNotFoundError:
        return {}, "no squeue on PATH"
    except subprocess.CalledProcessError as error:
        # Asked for one job that slurmctld has forgotten, squeue fails; asked for several, it leaves it out.
        if "Invalid job id" in error.stderr:
            return {}, ""
        return {}, one_line(error.stderr) or f"squeue failed with exit code {error.returncode}"
    except subprocess.TimeoutExpired:
        return {}, f"squeue did not answer in {timeout_s:.0f} s"
    except Unavailable as error:
        return {}, str(error)


def _ask_sacct(job_ids: Sequence[str], timeout_s: float | None) -> dict[str, JobState]:
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList,ExitCode"]
    try:
        return parse_sacct(_call([*command, f"--jobs={_array_ids(job_ids)}"], timeout_s))
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("sacct does not answer, accounting may be off: %s", getattr(error, "stderr", "") or error)
        return {}


def _array_ids(job_ids: Sequence[str]) -> str:
    """The arrays' ids only: a thousand task ids would be a very long command line."""
    return ",".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))


def _call(command: Sequence[str], timeout_s: float | None = None) -> str:
    timeout_s = CLIENT_TIMEOUT_S if timeout_s is None else timeout_s
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=timeout_s, check=True)
    return done.stdout
