"""What a sweep asked for, used and wasted: GPU hours, or CPU core hours where it asked for no GPU.

python jobs/usage.py lab
python jobs/usage.py lab --json

asked: the time limit times the resources held, for each start of each job. used: the time that jobs ran. wasted: the
time of jobs that failed for good, and of starts that ended early, except for training that was kept.
The numbers come from sacct where accounting is on, and otherwise from the trials' records, which give a lower bound.

energy: the kWh of the jobs' nodes while they ran, where Slurm meters them.

--json prints one document: format_version, sweep, folder, source (sacct, records), lower_bound, unit, asked_h, used_h,
wasted_h, energy_kwh, notes, lines (label, job_id, trials, starts, state, asked_h, used_h, wasted_h, energy_kwh).

Exit code 4 if squeue or sacct does not answer (not where accounting is off): the numbers are what is known without it.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro
from rich.table import Table
from rich.text import Text

from jobs.cost.usage import Usage, measure
from jobs.runs.single_runs import find_sweep_with_jobs
from jobs.runs.trial import Sweep
from shards.command import NOT_KNOWN, OK, run_command
from shards.command.flags import parse
from shards.terminal import table_terminal

FORMAT_VERSION = 1
SINGLE_RUNS = "no sweep's jobs ran them, and what they held is noted nowhere"


@dataclass(frozen=True)
class Command:
    """Show what a sweep asked for, used and wasted."""

    sweep: Annotated[str, tyro.conf.Positional] = "lab"
    """Name of the sweep, or its folder."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""
    json: bool = False
    """Print one JSON document instead of the table."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    sweep = find_sweep_with_jobs(command.sweep, command.runs_dir, SINGLE_RUNS)
    usage = measure(sweep)
    if command.json:
        sys.stdout.write(json.dumps(to_document(sweep, usage), indent=2) + "\n")
    else:
        console = table_terminal()
        console.print(render(sweep, usage))
        for note in (*usage.notes, *usage.doubts):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return NOT_KNOWN if usage.doubts else OK


def render(sweep: Sweep, usage: Usage) -> Table:
    table = Table(title=Text(f"{sweep.name}: {usage.unit}, by {usage.source}"), title_justify="left", show_footer=True)
    sums = {name: usage.total(name) for name in ("asked_h", "used_h", "wasted_h")}
    share = f" ({100 * sums['wasted_h'] / sums['used_h']:.0f} %)" if sums["used_h"] else ""
    for name, footer in (("axes", "all"), ("job", ""), ("starts", ""), ("state", "")):
        table.add_column(name, footer=footer, justify="right" if name == "starts" else "left")
    for name, column in (("asked", "asked_h"), ("used", "used_h"), ("wasted", "wasted_h")):
        footer = f"{sums[column]:.3g}" + (share if name == "wasted" else "")
        table.add_column(name, footer=footer, justify="right")
    if usage.energy_kwh is not None:
        table.add_column("kWh", footer=f"{usage.energy_kwh:.3g}", justify="right")
    for line in usage.lines:
        asked = "" if line.asked_h is None else f"{line.asked_h:.3g}"
        cells = (line.label, line.job_id, str(line.starts), line.state, asked, f"{line.used_h:.3g}")
        energy = () if usage.energy_kwh is None else ("" if line.energy_kwh is None else f"{line.energy_kwh:.3g}",)
        table.add_row(*(Text(cell) for cell in (*cells, f"{line.wasted_h:.3g}", *energy)))
    return table


def to_document(sweep: Sweep, usage: Usage) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "sweep": sweep.name,
        "folder": str(sweep.folder),
        "source": usage.source,
        "lower_bound": usage.source != "sacct",
        "unit": usage.unit,
        **{name: usage.total(name) for name in ("asked_h", "used_h", "wasted_h")},
        "energy_kwh": usage.energy_kwh,
        "notes": [*usage.notes, *usage.doubts],
        "lines": [asdict(line) for line in usage.lines],
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
