"""Submit trials of a sweep again that failed or were interrupted, and release those that Slurm holds.

python jobs/retry.py lab --failed --dry-run
python jobs/retry.py lab --cause gpu_memory
python jobs/retry.py lab --held
python jobs/retry.py lab 3f9a "unet elastic" --even-so

A trial resumes from its newest checkpoint. Trials that would only fail again (code, nan, data) need --even-so.
A job that Slurm holds because a start of it failed is released by --failed too; one that somebody holds, by --held or
when its trial is named.
Trials whose GPU was too small get twice as many accumulation steps: half of the samples in a pass, the same batch.
A node on which two starts of the sweep ended by a failure of the node is left out; --no-exclude takes it all the same.

Exit code 4 if Slurm does not say whether some of the trials have ended, which are then left alone.
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
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.launch.bad_nodes import BadNodes, bad_nodes
from jobs.launch.retry import Decision, Wanted, decide, require_some
from jobs.runs.choose import choose_all
from jobs.runs.single_runs import find_sweep_with_jobs
from jobs.runs.trial import Sweep
from jobs.state.observed import observe
from jobs.state.slurm_states import forget
from jobs.state.waits import release
from shards.cause import Cause
from shards.command import NOT_KNOWN, OK, run_command
from shards.command.flags import parse
from shards.terminal import table_terminal

SINGLE_RUNS = "the command that started one resumes it where it stopped"


@dataclass(frozen=True)
class Command:
    """Submit trials of a sweep again."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder."""
    trials: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which ones: beginnings of ids, or values on the axes, such as `unet` or "unet seed=0"."""
    failed: bool = False
    """All that failed, were interrupted, or are held by Slurm because a start failed."""
    held: bool = False
    """All that are held in the queue, by whomever: release them."""
    cause: tyro.conf.EnumChoicesFromValues[Cause | None] = None
    """All that ended for this reason, out of TRIALS if there are any."""
    even_so: bool = False
    """Also those that would only fail again unless something was fixed."""
    exclude: str | None = None
    """Nodes not to use, such as `node[3-4]`, beside those that the sweep leaves out."""
    no_exclude: tyro.conf.FlagCreatePairsOff[bool] = False
    """Use the nodes too that failed again and again."""
    allow_pipe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let the jobs fetch their shards from the addresses, or by the commands, that the trials' config.json name,
    although you have never named them yourself: they could be a stranger's."""
    dry_run: bool = False
    """Show what would be submitted, and do nothing."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.failed, self.held, self.cause, bool(self.trials), self.even_so)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if not (command.trials or command.failed or command.held or command.cause):
        raise ValueError("say which trials: --failed, --held, --cause CAUSE, or their ids")
    sweep = find_sweep_with_jobs(command.sweep, command.runs_dir, SINGLE_RUNS)
    everything = observe(sweep)
    observed = everything.of({trial.id for trial in choose_all(sweep, command.trials)})
    decision = decide(observed, command.wanted)
    require_some(decision, observed, command.wanted)
    console = table_terminal()
    show(decision, console)
    if observed.doubt:
        console.print(Text(f"left alone: {observed.doubt}"), soft_wrap=True)
    if not (decision.submit or decision.release):
        raise ValueError("nothing to submit: fix what is reported above, then add --even-so")
    bad = BadNodes() if command.no_exclude or not decision.submit else bad_nodes(sweep, everything.rows)
    for line in bad.messages:
        console.print(Text(line), soft_wrap=True)
    code = OK if command.dry_run else carry_out(decision, sweep, command, bad)
    return code or (NOT_KNOWN if observed.doubt else OK)


def carry_out(decision: Decision, sweep: Sweep, command: Command, bad: BadNodes) -> int:
    """Release and submit; returns the exit code."""
    if decision.release:
        release([row.submission.job_id for row in decision.release if row.submission])
        forget(sweep.folder)
    if not decision.submit:
        return OK
    from jobs.launch.submit import resubmit  # submitit, which only a submission needs

    exclude = [*([command.exclude] if command.exclude else []), *bad.names]
    trial_ids = [row.trial.id for row in decision.submit]
    return resubmit(sweep.folder, trial_ids, decision.overrides, exclude, command.allow_pipe)


def show(decision: Decision, console: Console) -> None:
    title = f"{len(decision.submit)} to submit, {len(decision.refused)} not"
    title += f", {len(decision.release)} to release" if decision.release else ""
    table = Table(title=title, title_justify="left")
    for column in ("trial", "axes", "cause", "what is done"):
        table.add_column(column, overflow="fold")
    for row in decision.submit:
        changes = ", ".join(f"{name}={value}" for name, value in decision.overrides.get(row.trial.id, {}).items())
        text = f"submitted again with {changes}" if changes else "submitted again as it is"
        table.add_row(*(Text(cell) for cell in (row.trial.id, row.trial.label, row.cause, text)))
    for row in decision.release:
        reason = row.wait.reason if row.wait else ""
        table.add_row(
            *(Text(cell) for cell in (row.trial.id, row.trial.label, reason, "released, to start in its turn"))
        )
    for row, why in decision.refused:
        table.add_row(*(Text(cell) for cell in (row.trial.id, row.trial.label, row.cause, f"refused: {why}")))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main))
