"""Shows for `jobs/sweep.py --dry-run` the trials and the scripts for sbatch: a screenful, or all with --all."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jobs.cost.budget import check_budget
from jobs.cost.table import render as render_cost
from jobs.launch.options import Options
from jobs.launch.run import estimate_cost, find_cells, print_warnings
from jobs.launch.submit import job_name
from jobs.reporting.statistics.power_wording import plan_text
from jobs.runs.trial import Sweep
from jobs.runs.trials import Trials, plan_trials
from jobs.state.observed import observe
from jobs.state.table import plain_table
from jobs.state.trial_status import TrialStatus
from shards.command import NOT_KNOWN, OK
from shards.terminal import Terminal
from slurm.arrays import render_scripts
from slurm.request import Request

LISTED_WHOLE = 20  # trials, cells, or scripts that are all shown
LISTED_FIRST = 8  # of more
OPTION = "#SBATCH "
ASK_FOR_ALL = "--all shows everything"
SLURM_PATIENCE_S = 10.0  # nothing is submitted


def show_plan(options: Options) -> int:
    """Print the trials, what they will cost, and the scripts that sbatch would get; returns the exit code."""
    cells = find_cells(options)
    trials = plan_trials(cells, options.folder(cells.spec))
    sweep = trials.sweep
    everything = observe(sweep, SLURM_PATIENCE_S)
    observed = everything.of(trials.cells)
    missing = trials.only(observed.missing)
    console = Terminal(soft_wrap=True)
    console.print(*render_trials(sweep, observed.rows, set(missing.cells), options.all), sep="\n")
    print_warnings(trials, observed, console)
    if missing.cells:
        cost = estimate_cost(options, missing)
        console.print(render_cost(cost, most_of(len({trial.cell for trial in missing}), options.all)))
        if options.budget:
            check_budget(cost, options.budget)
    if sweep.method != "bayes":
        console.print(plan_text(sweep, trials.cells, pictures_of_val(trials)), markup=False, highlight=False)
    if missing.cells and options.cluster == "slurm":
        console.print(scripts_text(options, missing, everything.slurm_jobs), markup=False, highlight=False)
    return NOT_KNOWN if observed.doubt else OK


def pictures_of_val(trials: Trials) -> int:
    """How many pictures the smallest val split of the shard sets has; 0 if none has any."""
    splits = (manifest.splits.get("val") for manifest in trials.sets.manifests.values())
    return min((split.num_samples for split in splits if split), default=0)


def scripts_text(options: Options, missing: Trials, live_jobs: Sequence[str]) -> str:
    """The scripts that sbatch would get for these trials, beside jobs of earlier submissions."""
    jobs = -(-len(missing.cells) // options.trials_per_job)
    resources, max_parallel = options.launch.settle(jobs, live_jobs)
    scripts = render_scripts(
        jobs,
        Request(missing.sweep.folder / "logs", resources, job_name(missing.sweep), max_parallel),
        patience_s=SLURM_PATIENCE_S,
    )
    return render_scripts_text(scripts, options.all)


def most_of(count: int, everything: bool) -> int:
    """How many of `count` items are shown."""
    return count if everything or count <= LISTED_WHOLE else LISTED_FIRST


def render_trials(
    sweep: Sweep, rows: Sequence[TrialStatus], to_run: set[str], everything: bool
) -> list[RenderableType]:
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


def _state(row: TrialStatus, to_run: set[str]) -> str:
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
