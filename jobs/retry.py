"""Submit trials of a sweep again that failed or were interrupted, and release those that Slurm holds.

python jobs/retry.py lab --failed --dry-run
python jobs/retry.py lab --cause gpu_memory
python jobs/retry.py lab --held
python jobs/retry.py lab 3f9a "unet elastic" --even-so

A trial goes on from its newest checkpoint. What would only fail again (code, nan, data) is refused without --even-so.
A job that Slurm holds because a start of it failed is released by --failed too; one that somebody holds, by --held or
when its trial is named.
Trials whose GPU was too small get twice as many accumulation steps: half of the samples in a pass, the same batch.
A node on which two starts of the sweep ended by a failure of the node is left out; --no-exclude takes it all the same.

Exit code 4 if Slurm does not say whether some of the trials have ended, which are then left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not (find_spec("jobs") and find_spec("tyro")):
    sys.stderr.write(f"petseg is not installed in {sys.executable}: `. .venv/bin/activate`; or see README.md\n")
    sys.exit(2)

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.launch.bad_nodes import BadNodes, bad_nodes
from jobs.launch.submit import resubmit
from jobs.runs.choose import choose_all
from jobs.runs.trial import Sweep, find_sweep
from jobs.state.slurm_states import forget
from jobs.state.trial_status import LIVE, Standing, standings, unknown_line
from jobs.state.waits import release
from petseg.run_folder.layout import load_config, load_overrides
from shards.cause import Cause
from shards.command import NOT_KNOWN, OK, NotKnown, parse, run_command, typed
from shards.terminal import Terminal

ACCUMULATION = "train.accumulation_steps"


@dataclass(frozen=True)
class Command:
    """Submit trials of a sweep again."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder."""
    trials: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which ones: beginnings of ids, or words of their places on the axes, such as `unet` or "unet seed=0"."""
    failed: bool = False
    """All that failed, were interrupted, or are held by Slurm because a start failed."""
    held: bool = False
    """All that are held in the queue, by whomever: release them."""
    cause: tyro.conf.EnumChoicesFromValues[Cause | None] = None
    """All that ended for this reason, out of TRIALS if there are any."""
    even_so: bool = False
    """Also those that would only fail again unless something was mended."""
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


@dataclass(frozen=True)
class Plan:
    """What is submitted again, with which changes, what is not, and what is released."""

    chosen: list[Standing] = field(default_factory=list)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)  # trial -> dotted config field -> value
    refused: list[tuple[Standing, str]] = field(default_factory=list)  # and why
    released: list[Standing] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if not (command.trials or command.failed or command.held or command.cause):
        raise ValueError("say which trials: --failed, --held, --cause CAUSE, or their ids")
    sweep = find_sweep(command.sweep, command.runs_dir)
    every_row = standings(sweep)
    wanted = {trial.id for trial in choose_all(sweep, command.trials)}
    rows = [row for row in every_row if row.trial.id in wanted]
    plan = make_plan(ended(rows, command), command.even_so)
    plan.released.extend(held(rows, command))
    require_some(plan, rows, command, sweep)
    console = Terminal(width=None if sys.stdout.isatty() else 200)
    show(plan, console)
    doubt = unknown_line(rows)
    if doubt:
        console.print(Text(f"left alone: {doubt}"), soft_wrap=True)
    if not (plan.chosen or plan.released):
        raise ValueError("nothing to submit: mend what is said above, then add --even-so")
    bad = BadNodes() if command.no_exclude or not plan.chosen else bad_nodes(sweep, every_row)
    for line in bad.said:
        console.print(Text(line), soft_wrap=True)
    if command.dry_run:
        return NOT_KNOWN if doubt else OK
    if plan.released:
        release([row.submission.job_id for row in plan.released if row.submission])
        forget(sweep.folder)
    code = OK
    if plan.chosen:
        exclude = [*([command.exclude] if command.exclude else []), *bad.names]
        code = resubmit(
            sweep.folder, [row.trial.id for row in plan.chosen], plan.overrides, exclude, command.allow_pipe
        )
    return code or (NOT_KNOWN if doubt else OK)


def ended(rows: Sequence[Standing], command: Command) -> list[Standing]:
    """Those that ended without a result, if such are wanted."""
    if command.held and not (command.failed or command.cause):
        return []
    return [row for row in rows if row.verdict and command.cause in (None, row.cause)]


def held(rows: Sequence[Standing], command: Command) -> list[Standing]:
    """Those that wait until they are released, as far as they are meant."""
    if command.cause:
        return []
    by_name = bool(command.trials) and not command.failed
    return [
        row
        for row in rows
        if row.wait and row.wait.is_held and (by_name or command.held or row.wait.kind == "failed_launch")
    ]


def require_some(plan: Plan, rows: Sequence[Standing], command: Command, sweep: Sweep) -> None:
    """Raises ValueError if nothing is to be done, with where the trials stand; NotKnown where Slurm does not say."""
    if plan.chosen or plan.refused or plan.released:
        return
    if doubt := unknown_line(rows):
        raise NotKnown(doubt)
    causes = ", ".join(sorted({row.cause for row in rows if row.verdict}))
    if causes and command.cause:
        raise ValueError(f"none of them ended by {command.cause}, but by {causes}")
    if command.held:
        raise ValueError(f"none of these {len(rows)} trials is held: see `{typed('jobs/status.py', sweep.folder)}`")
    live = sum(row.status in LIVE for row in rows)
    stand = ", ".join(sorted({row.status for row in rows}))
    then = typed("jobs/cancel.py" if live else "jobs/status.py", sweep.folder)
    waits = "".join(sorted({f"; {row.wait.reason}: {row.wait.advice}" for row in rows if row.wait}))
    raise ValueError(f"none of these {len(rows)} trials has failed or was interrupted ({stand}): see `{then}`{waits}")


def make_plan(rows: Sequence[Standing], even_so: bool) -> Plan:
    plan = Plan()
    for row in rows:
        assert row.verdict is not None
        if not (row.verdict.retryable or even_so):
            plan.refused.append((row, row.verdict.advice))
            continue
        if row.cause == Cause.GPU_MEMORY:
            steps = more_accumulation(row.trial.folder)
            if steps is None:
                plan.refused.append((row, "a pass has one sample already: choose a smaller model or picture"))
                continue
            plan.overrides[row.trial.id] = {ACCUMULATION: steps}
        plan.chosen.append(row)
    return plan


def more_accumulation(folder: Path) -> int | None:
    """Twice the accumulation steps of a trial, or the next number that divides its batch; None if there is none.

    Raises ValueError if the trial's config.json cannot be read.
    """
    try:
        train = load_config(folder)["config"]["train"]
        steps = int(load_overrides(folder).get(ACCUMULATION, train["accumulation_steps"]))
        batch_size = int(train["batch_size"])
    except KeyError as error:
        raise ValueError(f"{folder}: its config.json has no {error}") from None
    return next((more for more in range(max(2 * steps, 2), batch_size + 1) if batch_size % more == 0), None)


def show(plan: Plan, console: Console) -> None:
    title = f"{len(plan.chosen)} to submit, {len(plan.refused)} not"
    title += f", {len(plan.released)} to release" if plan.released else ""
    table = Table(title=title, title_justify="left")
    for column in ("trial", "axes", "cause", "what is done"):
        table.add_column(column, overflow="fold")
    for row in plan.chosen:
        changes = ", ".join(f"{name}={value}" for name, value in plan.overrides.get(row.trial.id, {}).items())
        text = f"submitted again with {changes}" if changes else "submitted again as it is"
        table.add_row(*(Text(cell) for cell in (row.trial.id, row.trial.label, row.cause, text)))
    for row in plan.released:
        reason = row.wait.reason if row.wait else ""
        table.add_row(
            *(Text(cell) for cell in (row.trial.id, row.trial.label, reason, "released, to start in its turn"))
        )
    for row, why in plan.refused:
        table.add_row(*(Text(cell) for cell in (row.trial.id, row.trial.label, row.cause, f"refused: {why}")))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main))
