"""What `jobs/sweep.py --dry-run` shows of trials and of scripts for sbatch: a screenful, unless all is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jobs.runs.trial import Sweep
from jobs.state.table import plain_table
from jobs.state.trial_status import Standing

LISTED_WHOLE = 20  # trials, cells, or scripts that are all shown
LISTED_FIRST = 8  # of more
OPTION = "#SBATCH "
ASK_FOR_ALL = "--all shows everything"


def most_of(count: int, everything: bool) -> int:
    """How many of so many are shown."""
    return count if everything or count <= LISTED_WHOLE else LISTED_FIRST


def render_trials(sweep: Sweep, rows: Sequence[Standing], to_run: set[str], everything: bool) -> list[RenderableType]:
    """A line for each trial, or for the first ones. to_run: the ids of those that would be submitted."""
    columns = ("trial", *sweep.axes, "state")
    most = most_of(len(rows), everything)
    lines = [
        (row.trial.id, *(str(row.trial.axes.get(name, "")) for name in sweep.axes), _state(row, to_run))
        for row in rows[:most]
    ]
    title = f"{sweep.folder}: {len(rows)} trials"
    if most > LISTED_WHOLE:
        return [plain_table(title, [columns, *lines])]
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for cells in lines:
        table.add_row(*map(Text, cells))
    left = len(rows) - most
    return [table, *([Text(f"and {left} more trials: {ASK_FOR_ALL}")] if left else [])]


def _state(row: Standing, to_run: set[str]) -> str:
    return "to run" if row.trial.id in to_run else row.status


def render_scripts_text(scripts: Sequence[str], everything: bool) -> str:
    """The first script whole, and of the others the options in which they differ, unless all is asked for."""
    if len(scripts) == 1:
        return scripts[0]
    if everything:
        return "\n".join(f"script {number}:\n{script}" for number, script in enumerate(scripts, start=1))
    most = most_of(len(scripts), everything)
    same = set(scripts[0].splitlines())
    parts = [
        f"{len(scripts)} scripts for sbatch, in this order; the first of them:",
        scripts[0],
        "The others differ in:",
    ]
    for number, script in enumerate(scripts[1:most], start=2):
        options = [line.removeprefix(OPTION) for line in script.splitlines() if line.startswith(OPTION)]
        differ = [one for one in options if one.startswith("--array=") or OPTION + one not in same]
        parts.append(f"script {number}: {' '.join(differ) or 'a single job, no array'}")
    if left := len(scripts) - most:
        parts.append(f"and {left} more scripts: {ASK_FOR_ALL}")
    return "\n".join(parts)
