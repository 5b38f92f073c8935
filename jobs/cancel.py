"""End trials of a sweep: Slurm's jobs, or the processes of this machine.

python jobs/cancel.py lab
python jobs/cancel.py lab 3f9a "unet elastic"
python jobs/cancel.py lab --yes

Cancelled trials save where they can, and resume when the sweep is run again. Exit code 4 if Slurm does not say
whether the jobs have ended.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from jobs.launch.cancel import adopt_cut_off, cancel_local, cancel_slurm, shared_job_warnings
from jobs.runs.choose import choose_all
from jobs.runs.single_runs import find_sweep_with_jobs
from jobs.state.observed import observe
from jobs.state.slurm_states import forget
from jobs.state.table import render_table
from shards.command import NOT_KNOWN, OK, run_command, typed
from shards.command.flags import parse
from shards.terminal import table_terminal

SINGLE_RUNS = "Ctrl-C where it runs, or scancel for the job that runs it, lets one save and end"


@dataclass(frozen=True)
class Command:
    """End trials of a sweep."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder."""
    trials: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which ones: beginnings of ids, or values on the axes, such as `unet`; all if not given."""
    yes: bool = False
    """Do not ask."""
    kill: bool = False
    """End processes of this machine at once, without letting them save."""
    grace_s: float = 20.0
    """How long to wait for processes of this machine to save and end."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    sweep = find_sweep_with_jobs(command.sweep, command.runs_dir, SINGLE_RUNS)
    console = table_terminal()
    adopt_cut_off(sweep)
    chosen = {trial.id for trial in choose_all(sweep, command.trials)}
    rows = [row for row in observe(sweep).of(chosen).live if row.submission]
    if not rows:
        console.print("nothing to cancel: none of them is queued or running", highlight=False)
        return OK
    console.print(render_table(f"to cancel: {len(rows)}", rows, console.width))
    for line in shared_job_warnings(sweep, rows):
        console.print(line, markup=False, highlight=False)
    if not command.yes and not confirmed(len(rows)):
        console.print("nothing was cancelled", highlight=False)
        return OK
    cancel_slurm(row for row in rows if row.submission and row.submission.cluster == "slurm")
    local = [row for row in rows if row.submission and row.submission.cluster == "local"]
    cancel_local(sweep, local, whole=not command.trials, kill=command.kill, grace_s=command.grace_s)
    forget(sweep.folder)
    after = observe(sweep).of({row.trial.id for row in rows})
    ended = len(after.rows) - len(after.live)
    console.print(render_table(f"ended: {ended} of {len(after.rows)}", after.rows, console.width))
    if after.doubt:
        line = f"scancel was called, and what came of it is {after.doubt}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return NOT_KNOWN
    if after.live:
        hint = f"those that still run are saving: see `{typed('jobs/status.py', sweep.folder)}`"
        if local:
            hint += ", or end processes of this machine with --kill"
        if any(row.submission and row.submission.cluster == "debug" for row in after.rows):
            hint += "; those of --cluster debug end with their launcher, by Ctrl-C"
        console.print(hint, highlight=False, soft_wrap=True)
    return OK


def confirmed(count: int) -> bool:
    """What the user answers; raises ValueError where nobody can be asked."""
    trials = f"{count} trial{'s' if count > 1 else ''}"
    if not sys.stdin.isatty():
        raise ValueError(f"nothing was cancelled: nobody can be asked here, add --yes to cancel {trials}")
    try:
        return input(f"cancel {trials}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


if __name__ == "__main__":
    sys.exit(run_command(main))
