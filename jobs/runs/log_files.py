"""The logs of a trial's job: which files they are, their ends, and the tracebacks in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from jobs.runs.trial import TRIAL_ID, Submission, Trial
from shards.command import printable
from shards.files import open_regular

TAIL_BYTES = 64 * 1024
ROOMS = frozenset({"jobs", "petseg", "shards", "slurm"})
MAX_MESSAGE_LINES = 15

START_OF_ATTEMPT = "Starting with JobEnvironment("  # submitit's first line; requeued jobs append to the same file
RAISED = "Submitted job triggered an exception"  # submitit's last line: the traceback after it ended the process
CHAIN = ("During handling of the above exception", "The above exception was the direct cause")
_RANK = re.compile(r"^\[rank\d+\]: ")  # torch puts it before each line of an exception in a job of several processes
_FIRST_LINE = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s+File "([^"]+)", line (\d+), in (.+)$')
LOG_TIME = "%H:%M:%S"  # begins what jobs.node logs
_NEW_ENTRY = re.compile(  # what is not a further line of an exception's message
    r"^(\d\d:\d\d:\d\d |submitit (INFO|WARNING|ERROR)|slurmstepd\S*: |srun: |\[rank\d+\]|\[[WEIF]\d*[ :]|[WEIF]\d{4} |"
    r"Exception ignored)"
)
# what jobs.node writes to divide a log, in jobs of several trials; none of it is for people alone
START_OF_WORKER = "Starting with %s as worker %d of %d"  # %s: a JobEnvironment, as in submitit's own first line
TRIAL_FAILED = "trial %s failed; the next one follows"
_TRIAL_FAILED = re.compile(rf"^.*\b{re.escape(TRIAL_FAILED).replace('%s', f'({TRIAL_ID.pattern})')}$", re.MULTILINE)


@dataclass(frozen=True)
class Traceback:
    """A traceback as it was printed, with those that led to it."""

    text: str
    errors: tuple[str, ...]  # `type: message` of the whole chain, the one that was not caught last
    frame: str  # the last frame in our files, such as `petseg/train.py:130 in train_epoch`; empty if there is none

    @property
    def error(self) -> str:
        return self.errors[-1]

    @property
    def kind(self) -> str:
        """The exception's type without its module."""
        return self.error.partition(":")[0].rpartition(".")[2].strip()


def rank_logs(trial: Trial, submission: Submission) -> list[Path]:
    """The logs of a job's ranks that are there, rank 0 first; in the sweep's own folder if it was moved.

    If a job trains several trials at once, only the log of the trial's own worker.
    """
    if not submission.log:
        return []
    first = trial.folder.parents[1] / "logs" / Path(submission.log).name
    if f"{submission.job_id}_0_" not in first.name:
        return [first] if first.exists() else []
    if slot := trial.state().of_job(submission.job_id).slot:
        own = log_of(first, submission, slot)
        return [own] if own.exists() else []
    return list(_while_there(log_of(first, submission, rank) for rank in count()))


def log_of(first: Path, submission: Submission, rank: int) -> Path:
    """The log of a rank, or of a worker by its slot. first: the log of rank 0."""
    return first.with_name(first.name.replace(f"{submission.job_id}_0_", f"{submission.job_id}_{rank}_", 1))


def _while_there(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            return
        yield path


def read_tail(path: Path, num_bytes: int = TAIL_BYTES) -> str:
    """The last lines of a file, whole ones, as text whatever its bytes are; empty if there is no file."""
    try:
        with open_regular(path, follow=False) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - num_bytes))
            content = file.read()
    except OSError:
        return ""
    if size > num_bytes:
        content = content.partition(b"\n")[2]
    return printable(content.decode(errors="replace").replace("\r", "\n"))


def last_attempt(text: str) -> str:
    """The part of a log since its job was last started."""
    start = text.rfind(START_OF_ATTEMPT)
    return text if start < 0 else text[text.rfind("\n", 0, start) + 1 :]


def own_part(text: str, trial_id: str) -> str:
    """The part of a log, of a job that runs several trials, without the other trials' failures."""
    failures = list(_TRIAL_FAILED.finditer(text))
    for match in failures:
        if match[1] == trial_id:
            return text[match.end() : _end_of_traceback(text, match.end())]
    for match in reversed(failures):
        text = text[: match.start()] + text[_end_of_traceback(text, match.end()) :]
    return text


def _end_of_traceback(text: str, start: int) -> int:
    offset = start + 1
    for line in text[offset:].splitlines(keepends=True):
        if _NEW_ENTRY.match(line):
            return offset
        offset += len(line)
    return len(text)


def fatal_traceback(text: str) -> Traceback | None:
    """The traceback that ended a process, by its log; None if it did not end by an exception."""
    raised = text.rfind(RAISED)
    candidates = tracebacks(text[max(raised, 0) :]) or tracebacks(text)
    if not candidates:
        return None
    return candidates[0] if raised >= 0 else candidates[-1]


def tracebacks(text: str) -> list[Traceback]:
    """All tracebacks of a text in its order, each joined with those that it was raised from."""
    lines = [_RANK.sub("", line) for line in text.splitlines()]
    joined: list[Traceback] = []
    position, chained = 0, False
    while position < len(lines):
        if lines[position].strip() != _FIRST_LINE:
            chained = chained or lines[position].startswith(CHAIN)
            position += 1
            continue
        end, error, frame = _read_one(lines, position + 1)
        if error:
            one = Traceback("\n".join(lines[position:end]), (error,), frame)
            joined[-1:] = [_joined(joined[-1], one)] if chained and joined else [*joined[-1:], one]
        position, chained = end, False
    return joined


def _read_one(lines: list[str], start: int) -> tuple[int, str, str]:
    """(line after it, `type: message`, last frame of ours) of the traceback whose first frame is at `start`."""
    position, frame = start, ""
    while position < len(lines) and lines[position].startswith((" ", "\t")):
        if (match := _FRAME.match(lines[position])) and (name := our_file(match[1])):
            frame = f"{name}:{match[2]} in {match[3]}"
        position += 1
    first = position
    while position < min(len(lines), first + MAX_MESSAGE_LINES) and lines[position].strip():
        if position > first and (_NEW_ENTRY.match(lines[position]) or lines[position].strip() == _FIRST_LINE):
            break
        position += 1
    return max(position, start), "\n".join(lines[first:position]).strip(), frame


def _joined(before: Traceback, after: Traceback) -> Traceback:
    text = f"{before.text}\n\n...\n\n{after.text}"
    return Traceback(text, before.errors + after.errors, after.frame or before.frame)


def our_file(path: str) -> str:
    """`petseg/train.py` for a file of ours, wherever the packages lie; empty for another's."""
    parts = PurePosixPath(path).parts
    if "site-packages" in parts:
        inside = parts[len(parts) - parts[::-1].index("site-packages") :]
        return "/".join(inside) if inside[0] in ROOMS else ""
    if any(re.fullmatch(r"python3(\.\d+)?", part) for part in parts):  # the standard library, and what lies in it
        return ""
    indices = [index for index, part in enumerate(parts[:-1]) if part in ROOMS]
    return "/".join(parts[indices[-1] :]) if indices else ""  # /home/me/petseg/petseg/data/tars.py: the last one
