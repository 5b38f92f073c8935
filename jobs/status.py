"""Where each trial of a sweep stands, and why what failed has failed.

python jobs/status.py lab
python jobs/status.py lab --watch --every 10
python jobs/status.py lab --json

A trial is planned, queued (also behind others of its job), running, stalled (alive, but without a sign of life for ten
minutes and for five epochs), interrupted (it can go on as it is), pruned (stopped early by the sweep's early_terminate;
its Dice is the best of the epochs that it had), done or failed; below the table each distinct failure is shown once,
and each reason for which queued jobs do not start by themselves, with what to do. Where Slurm does not answer, trials
whose jobs may still be there are unknown. --watch shows the first rows of the report's leaderboard too.

For a sweep that jobs/chain.py began it shows the state of the chain's own jobs below the table, until all are done.

Exit code 0; 3 if trials have failed and none is queued or running, or a job of the chain failed; 4 if some are unknown.

--json prints one document with these fields:
  format_version, sweep, folder, time (seconds since 1970)
  slurm: source (squeue, sacct, none; empty if there was nothing to ask), why (if none), age_s (of the answer)
  counts: state -> number of trials
  trials: id, label, axes, state, cause, note, epoch (finished), epochs (0 while a budget's is not known), step,
    steps_per_epoch, images_per_s, left_s (the last four are null unless it runs), val_dice, restarts, host, cluster,
    job_id, log
  failures: cause, signature, advice, retryable, traceback, trials (ids)
  chain (its own jobs, since the last pack): step, job_id, dependency, log, state, why
  waits (what does not start by itself): kind (failed_launch, held, never, blocked), reason, advice, trials (ids)
  wandb (as the trials have noted it): project_urls, sent, not_sent (ids), offline, reasons
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro
from rich.console import Console, Group
from rich.live import Live

from jobs.reporting.leaders import Leaders
from jobs.runs.single_runs import find_runs
from jobs.runs.trial import SWEEP_NAME, Sweep
from jobs.state.chain_state import BAD, ChainJob, chain_jobs, chain_lines, has_chain, to_rows
from jobs.state.observed import Observed, glance
from jobs.state.slurm_states import TIMEOUT_S
from jobs.state.table import FORMAT_VERSION, render, source_line, title_of, to_document
from jobs.state.trial_status import LIVE, TrialStatus
from shards.command import FAILED, NOT_KNOWN, OK, run_command
from shards.command.flags import parse
from shards.terminal import Terminal, table_terminal

LAST_BOARD_S = 60.0  # the longest wait for the leaderboard of a sweep that is over
LINES_BESIDE_TABLE = 12  # of the terminal: head and foot of the table, failures, the source


@dataclass(frozen=True)
class Command:
    """Show where each trial of a sweep stands."""

    sweep: Annotated[str, tyro.conf.Positional] = "lab"
    """Name of the sweep, or its folder; or a folder of single runs, such as runs/single."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""
    watch: bool = False
    """Show it again and again, until nothing is queued or running, or Ctrl-C."""
    every: float = 30.0
    """Seconds between two looks of --watch."""
    json: bool = False
    """Print one JSON document instead of the table."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if command.every < 1:
        raise ValueError(f"--every {command.every:g}: must be at least 1 second")
    if command.watch and command.json:
        raise ValueError("--json prints one document: leave --watch out")
    if folder := chain_without_sweep(command):
        return tell_chain(folder, command.json)
    sweep = find_runs(command.sweep, command.runs_dir)
    if command.watch:
        return watch(sweep, command.every)
    observed = glance(sweep)
    jobs = chain_jobs(sweep.folder, TIMEOUT_S)
    if command.json:
        document = to_document(sweep, observed.rows, observed.answer) | {"chain": to_rows(jobs)}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        console = table_terminal()
        console.print(render(sweep, observed.rows, observed.answer, console.width))
        tell_lines(chain_lines(jobs))
    return max(exit_code(observed.rows), chain_code(jobs))


def chain_without_sweep(command: Command) -> Path | None:
    """The folder that is meant, if it holds a chain that has submitted no trials yet."""
    for folder in (Path(command.sweep), command.runs_dir / command.sweep):
        if (folder / SWEEP_NAME).exists():
            return None
        if has_chain(folder):
            return folder
    return None


def tell_chain(folder: Path, as_json: bool) -> int:
    jobs = chain_jobs(folder, TIMEOUT_S)
    if as_json:
        document = {"format_version": FORMAT_VERSION, "sweep": folder.name, "folder": str(folder), "time": time.time()}
        sys.stdout.write(json.dumps(document | {"trials": [], "chain": to_rows(jobs)}, indent=2) + "\n")
    else:
        tell_lines([f"{folder.name}: no trials yet", *chain_lines(jobs)])
    return chain_code(jobs)


def tell_lines(lines: Iterable[str]) -> None:
    for line in lines:
        Terminal(soft_wrap=True).print(line, markup=False, highlight=False)


def chain_code(jobs: Sequence[ChainJob]) -> int:
    """3 if a job of the chain has failed, or will never begin."""
    return FAILED if any(job.status in BAD for job in jobs) else OK


def exit_code(rows: Sequence[TrialStatus]) -> int:
    """4 if some are unknown, 3 if trials have failed and none is live, else 0."""
    states = {row.status for row in rows}
    if "unknown" in states:
        return NOT_KNOWN
    return FAILED if "failed" in states and states.isdisjoint(LIVE) else OK


def watch(sweep: Sweep, every_s: float) -> int:
    """Redraw on a terminal, print a line of counts elsewhere, until nothing lives or Ctrl-C."""
    if not sys.stdout.isatty():
        return _watch_plainly(sweep, every_s)
    observed = glance(sweep)
    console, leaders = Terminal(), Leaders()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while observed.live:
            rows, answer = observed.rows, observed.answer
            board = leaders.look(sweep, rows)
            lines = max(3, console.height - LINES_BESIDE_TABLE - leaders.height)
            live.update(Group(render(sweep, rows, answer, console.width, lines), board), refresh=True)
            leaders.pause(every_s)
            sweep = find_runs(str(sweep.folder), sweep.folder.parent)  # trials may have been added
            observed = glance(sweep)
        live.update("", refresh=True)
    return _end(console, observed, leaders)


def _end(console: Console, observed: Observed, leaders: Leaders) -> int:
    """Print the last table, and the leaderboard that goes with it; who stops watching does not wait long for one."""
    sweep, rows = observed.sweep, observed.rows
    console.print(render(sweep, rows, observed.answer, console.width))
    if board := leaders.last(sweep, rows, LAST_BOARD_S / 30 if observed.live else LAST_BOARD_S):
        console.print(board)
    return exit_code(rows)


def _watch_plainly(sweep: Sweep, every_s: float) -> int:
    console, reported = table_terminal(), ""
    observed = glance(sweep)
    with contextlib.suppress(KeyboardInterrupt):
        while observed.live:
            if (line := title_of(sweep, observed.rows)) != reported:  # a log file needs no line per look
                source = source_line(observed.answer)
                console.print(f"{time.strftime('%H:%M:%S')} {line}; {source}", markup=False, soft_wrap=True)
                reported = line
            time.sleep(every_s)
            sweep = find_runs(str(sweep.folder), sweep.folder.parent)
            observed = glance(sweep)
    return _end(console, observed, Leaders())


if __name__ == "__main__":
    sys.exit(run_command(main))
