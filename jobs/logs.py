"""Show the log of a trial's last job, of all its ranks.

python jobs/logs.py lab 3f9a
python jobs/logs.py lab unet elastic seed=0 --lines 200
python jobs/logs.py lab 3f9a --follow

A trial is named by the beginning of its id, or by values on the axes. Exit code 4 if there is no log, and
Slurm does not say whether there will be one.
"""

from __future__ import annotations

import codecs
import contextlib
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from jobs.runs.choose import choose_one
from jobs.runs.log_files import rank_logs
from jobs.runs.single_runs import find_sweep_with_jobs
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trial_state import LAST_WORDS
from jobs.state.slurm_states import ask
from jobs.state.trial_status import LIVE, TrialStatus, trial_status
from shards.command import OK, NotKnown, printable, run_command
from shards.command.flags import parse
from shards.files import open_regular

POLL_S = 0.5
ASK_EVERY_S = 10.0  # Slurm, whether the trial is over; the trial's own word is looked at in each poll
BLOCK_BYTES = 64 * 1024
SINGLE_RUNS = "what they say went to the terminal or the job that ran them, and each one's metrics.jsonl has its epochs"


@dataclass(frozen=True)
class Command:
    """Show the log of a trial's last job."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder."""
    trial: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Beginning of the trial's id, or values on the axes, such as `unet elastic seed=0`."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Show what is added, until the trial is over or Ctrl-C."""
    lines: int = 50
    """Last lines of each log to begin with; 0 = all."""
    rank: int | None = None
    """Only this rank's log."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if command.lines < 0:
        raise ValueError(f"--lines {command.lines}: must be 0 (all) or more")
    sweep = find_sweep_with_jobs(command.sweep, command.runs_dir, SINGLE_RUNS)
    trial = choose_one(sweep, " ".join(command.trial))
    tail = Tail(command.lines)
    if command.follow:
        with contextlib.suppress(KeyboardInterrupt):
            follow(sweep, trial, tail, command.rank)
        return OK
    paths = find_logs(sweep, trial, command.rank)
    if not paths:
        row = look(sweep, trial)
        problem = f"{trial.id} {trial.label} has no log yet: {why_not(row, command.rank)}"
        raise NotKnown(problem) if row.status == "unknown" else ValueError(problem)
    tail.show(paths)
    return OK


def find_logs(sweep: Sweep, trial: Trial, rank: int | None) -> list[Path]:
    """The logs of the trial's last job that are there."""
    submission = sweep.submissions().get(trial.id)
    paths = rank_logs(trial, submission) if submission else []
    return paths if rank is None else paths[rank : rank + 1]


def why_not(row: TrialStatus, rank: int | None) -> str:
    if row.log and rank:
        return f"rank {rank} has not started, or the job has fewer"
    detail = ": ".join(filter(None, [row.note, row.silence]))
    reason = f" ({detail})" if detail else ""
    return f"it is {row.status}{reason}; --follow waits for it" if row.status in LIVE else f"it is {row.status}{reason}"


def look(sweep: Sweep, trial: Trial, max_age_s: float = ASK_EVERY_S) -> TrialStatus:
    """Where one trial stands; Slurm is asked for its job alone, at most every `max_age_s`."""
    submission = sweep.submissions().get(trial.id)
    on_slurm = [submission.job_id] if submission and submission.cluster == "slurm" and submission.job_id else []
    answer = ask(sweep.folder, on_slurm, max_age_s, keep=False)
    return trial_status(trial, submission, answer.states)


def follow(sweep: Sweep, trial: Trial, tail: Tail, rank: int | None, poll_s: float = POLL_S) -> None:
    """Show what is written, by jobs that take its place too, until the trial is over and all is shown."""
    asked, reported, over = float("-inf"), "", False
    while True:
        ended = trial.state().status in LAST_WORDS
        if ended or time.monotonic() - asked >= ASK_EVERY_S:
            asked = time.monotonic()
            row = look(sweep, trial)
            over = row.status not in LIVE
            word = f"{row.status}: {row.note}" if row.note else row.status
            if word != reported and (row.status != "running" or reported):
                sys.stderr.write(f"{trial.id} {trial.label} is {printable(word)}\n")
            reported = word
        tail.show(find_logs(sweep, trial, rank))
        if over:
            return
        time.sleep(poll_s)


@dataclass
class Tail:
    """How much of each log is shown already."""

    lines: int  # to begin with; 0 = all
    _shown: dict[Path, int] = field(default_factory=dict)  # bytes
    _decoders: dict[Path, codecs.IncrementalDecoder] = field(default_factory=dict)
    _last: Path | None = None

    def show(self, paths: Sequence[Path]) -> None:
        """Write what is new in each log, under a line with its name wherever another log's text came before."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError), open_regular(path, follow=False) as file:
                size = file.seek(0, 2)
                start = self._shown.get(path)
                if start is None or start > size:  # new, or cut off and written anew
                    start = start_of_last_lines(path, self.lines)
                elif start == size:
                    continue
                if (len(paths) > 1 or self._last) and path != self._last:
                    sys.stdout.write("\n" * bool(self._last) + f"==> {printable(str(path))} <==\n")
                self._last = path
                self._shown[path] = start
                file.seek(start)
                while block := file.read(BLOCK_BYTES):
                    sys.stdout.write(self._text(path, block))
                    self._shown[path] += len(block)
                sys.stdout.flush()

    def _text(self, path: Path, block: bytes) -> str:
        """What of a log goes to the terminal, which obeys none of it; a bar that is redrawn becomes lines."""
        decoder = self._decoders.setdefault(path, codecs.getincrementaldecoder("utf-8")("replace"))
        return printable(decoder.decode(block).replace("\r\n", "\n").replace("\r", "\n"))


def start_of_last_lines(path: Path, lines: int) -> int:
    """Where the last lines of a file begin, in bytes; 0 = all of it."""
    if not lines:
        return 0
    with open_regular(path, follow=False) as file:
        end = file.seek(0, 2)
        count, position = 0, end
        while position > 0:
            length = min(BLOCK_BYTES, position)
            position -= length
            file.seek(position)
            block = file.read(length)
            if position + length == end and block.endswith(b"\n"):
                block = block[:-1]
            here = len(block)
            while (here := block.rfind(b"\n", 0, here)) >= 0:
                count += 1
                if count == lines:
                    return position + here + 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
