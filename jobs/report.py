"""Turn a sweep into one self-contained page, and its leaderboard into a table on the terminal.

python jobs/report.py lab
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.report_data import NOISE_DICE, Place, Record, Spread, gather, rank, read_records, varied
from jobs.report_page import render_page
from jobs.report_protocol import floor_of, state_counts
from jobs.trial import Sweep, find_sweep
from shards.command import OK, run_command
from shards.manifest import write_whole

REPORT_NAME = "report.html"
VERDICTS = {"tie": "not told apart", "unknown": "one seed each", "apart": "apart"}


@dataclass(frozen=True)
class Command:
    """Write a sweep's report.html and show its leaderboard."""

    sweep: Annotated[str, tyro.conf.Positional] = "lab"
    """Name of the sweep, or its folder."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""
    out: Path | None = None
    """The page; by default report.html in the sweep's folder."""


def main(argv: Sequence[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, description=__doc__)
    sweep = find_sweep(command.sweep, command.runs_dir)
    records = read_records(sweep)
    path = command.out or sweep.folder / REPORT_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render_page(sweep, records))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(leaderboard(sweep, records))
    console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return OK


def leaderboard(sweep: Sweep, records: Sequence[Record]) -> Table:
    """The groups by mean val Dice."""
    axes = varied(sweep, records)
    counts = ", ".join(f"{count} {state}" for state, count in state_counts(records))
    floor = floor_of(records, "val")
    caption = f"differences under {NOISE_DICE} or under the spread of the seeds are not told apart"
    caption += f"; all-pet guess: {floor:.4f}" if floor is not None else ""
    table = Table(title=Text(f"{sweep.name}: {counts}"), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("#", justify="right")
    for name in axes or ["trials"]:
        table.add_column(Text(name.rpartition(".")[2]), overflow="fold")
    for column in ("val Dice", "seeds", "min-max", "from the one above", "test Dice", "val IoU", "val loss"):
        table.add_column(column, justify="right")
    for place in rank(gather(axes, records)):
        table.add_row(*(Text(text) for text in _row(place)))
    return table


def _row(place: Place) -> list[str]:
    group, val, step = place.group, place.val_dice, place.step
    metrics = (group.spread(metric) for metric in ("test/dice", "val/iou", "val/loss"))
    return [
        str(place.rank or ""),
        *(str(value) for value in group.axes.values() or ["all"]),
        _with_sd(val),
        f"{len(group.done)}/{len(group.records)}",
        f"{val.low:.4f}-{val.high:.4f}" if val and val.n > 1 else "",
        f"{step.difference:+.4f} {VERDICTS[step.verdict]}" if step else "",
        *(_with_sd(spread) for spread in metrics),
    ]


def _with_sd(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.4f}" + ("" if spread.sd is None else f" ± {spread.sd:.4f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
