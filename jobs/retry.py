"""Submit trials of a sweep again that failed or were interrupted; those that need it, with a change.

python jobs/retry.py lab --failed --dry-run
python jobs/retry.py lab --cause gpu_memory
python jobs/retry.py lab 3f9a "unet elastic" --even-so

A trial goes on from its newest checkpoint. What would only fail again (code, nan, data) is refused without --even-so.
Trials whose GPU was too small get twice as many accumulation steps: half of the samples in a pass, the same batch.
A node on which two starts of the sweep ended by a failure of the node is left out; --no-exclude takes it all the same.
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

from jobs.bad_nodes import BadNodes, bad_nodes
from jobs.causes import Cause
from jobs.choose import choose_all
from jobs.launch import resubmit
from jobs.standing import LIVE, Standing, standings
from jobs.trial import Sweep, find_sweep
from petseg.run_folder import load_config, load_overrides
from shards.command import OK, parse, run_command

ACCUMULATION = "train.accumulation_steps"


@dataclass(frozen=True)
class Command:
    """Submit trials of a sweep again."""

    sweep: Annotated[str, tyro.conf.Positional]
    """Name of the sweep, or its folder."""
    trials: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which ones: beginnings of ids, or words of their places on the axes, such as `unet` or "unet seed=0"."""
    failed: bool = False
    """All that failed or were interrupted."""
    cause: Cause | None = None
    """All that ended for this reason, out of TRIALS if there are any."""
    even_so: bool = False
    """Also those that would only fail again unless something was mended."""
    exclude: str | None = None
    """Nodes not to use, such as `node[3-4]`, beside those that the sweep leaves out."""
    no_exclude: tyro.conf.FlagCreatePairsOff[bool] = False
    """Use the nodes too that failed again and again."""
    dry_run: bool = False
    """Show what would be submitted, and do nothing."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


@dataclass(frozen=True)
class Plan:
    """What is submitted again, with which changes, and what is not."""

    chosen: list[Standing] = field(default_factory=list)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)  # trial -> dotted config field -> value
    refused: list[tuple[Standing, str]] = field(default_factory=list)  # and why


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if not (command.trials or command.failed or command.cause):
        raise ValueError("say which trials: --failed, --cause CAUSE, or their ids")
    sweep = find_sweep(command.sweep, command.runs_dir)
    rows = standings(sweep)
    plan = make_plan(ended(sweep, rows, command), command.even_so)
    console = Console(width=None if sys.stdout.isatty() else 200)
    show(plan, console)
    if not plan.chosen:
        raise ValueError("nothing to submit: mend what is said above, then add --even-so")
    bad = BadNodes() if command.no_exclude else bad_nodes(sweep, rows)
    for line in bad.said:
        console.print(Text(line), soft_wrap=True)
    if command.dry_run:
        return OK
    exclude = [*([command.exclude] if command.exclude else []), *bad.names]
    return resubmit(sweep.folder, [row.trial.id for row in plan.chosen], plan.overrides, exclude)


def ended(sweep: Sweep, standing: Sequence[Standing], command: Command) -> list[Standing]:
    """The chosen trials that ended without a result.

    Raises ValueError if there are none, with where the named ones stand.
    """
    wanted = {trial.id for trial in choose_all(sweep, command.trials)}
    rows = [row for row in standing if row.trial.id in wanted]
    found = [row for row in rows if row.verdict and command.cause in (None, row.cause)]
    if found:
        return found
    causes = ", ".join(sorted({row.cause for row in rows if row.verdict}))
    if causes:
        raise ValueError(f"none of them ended by {command.cause}, but by {causes}")
    live = sum(row.status in LIVE for row in rows)
    stand = ", ".join(sorted({row.status for row in rows}))
    then = f"python jobs/cancel.py {sweep.folder}" if live else f"python jobs/status.py {sweep.folder}"
    raise ValueError(f"none of these {len(rows)} trials has failed or was interrupted ({stand}): see `{then}`")


def make_plan(rows: Sequence[Standing], even_so: bool) -> Plan:
    plan = Plan()
    for row in rows:
        assert row.verdict is not None
        if not (row.verdict.retryable or even_so):
            plan.refused.append((row, row.verdict.advice))
            continue
        if row.cause == "gpu_memory":
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
    table = Table(title=f"{len(plan.chosen)} to submit, {len(plan.refused)} not", title_justify="left")
    for column in ("trial", "axes", "cause", "what is done"):
        table.add_column(column, overflow="fold")
    for row in plan.chosen:
        changes = ", ".join(f"{name}={value}" for name, value in plan.overrides.get(row.trial.id, {}).items())
        text = f"submitted again with {changes}" if changes else "submitted again as it is"
        table.add_row(*(Text(cell) for cell in (row.trial.id, row.trial.label, row.cause, text)))
    for row, why in plan.refused:
        table.add_row(*(Text(cell) for cell in (row.trial.id, row.trial.label, row.cause, f"refused: {why}")))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main))
