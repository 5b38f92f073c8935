"""Run a sweep: one job per trial, and only for trials that have no result yet.

python jobs/sweep.py --partition gpu
python jobs/sweep.py --cluster local --max-parallel 2 --set train.epochs=3 --axis train.seed=0
python jobs/sweep.py --partition gpu --dry-run
python jobs/sweep.py --sweep jobs/sweeps/search.yaml --cluster local

Exit code 0; 3 if trials have failed (--cluster local and debug, which wait for them); 4 if Slurm does not say how some
jobs stand, which are left alone; 75 if Slurm takes no more jobs now, or does not answer, and trials are left: the same
command again submits those.
"""

from __future__ import annotations

import runpy
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from jobs.cost.budget import check_budget, parse_budget
from jobs.cost.estimate import Estimate, estimate
from jobs.cost.table import label_of
from jobs.cost.table import render as render_cost
from jobs.design.shard_sets import ShardSets, read_shard_sets, require_known_sets, typed_locations
from jobs.design.spec import DEFAULT_SWEEP, Cell, Spec, expand, load_spec, parse_axes, parse_settings, require_name
from jobs.launch.dry_run import most_of, render_scripts_text, render_trials
from jobs.launch.journal import reconcile
from jobs.launch.preflight import require_possible
from jobs.launch.submit import (
    Launch,
    has_begun,
    job_name,
    launcher_lock,
    save_launch,
    submit_trials,
    tell_end,
    tell_wandb,
)  # fmt: skip
from jobs.runs.earlier_trials import earlier_line
from jobs.runs.trial import Sweep, Trial, load_sweep, plan_sweep, save_sweep
from jobs.search.rounds import next_round
from jobs.state.trial_status import ENDED, LIVE, Standing, standings, unknown_line
from petseg.config import WEIGHTS_SUFFIXES, RunConfig
from petseg.config.values import with_values
from petseg.data.consent import remember
from petseg.data.store import enlarged_line, is_remote
from petseg.run_folder.layout import claim_folder
from petseg.run_folder.new_folder import missing_folders, removed_unless_begun
from shards.command import NOT_KNOWN, OK, parse, run_command, typed
from shards.terminal import Terminal
from slurm.executor import render_scripts
from slurm.profiles import profile_of
from slurm.resources import Resources

SEARCH_JOBS = 8  # of a search on Slurm at a time
SLURM_PATIENCE_S = 10.0  # of --dry-run, which submits nothing
WEIGHTS = "model.weights"


@dataclass(frozen=True)
class Command:
    """Run a sweep: one job per trial, and only for trials that have no result yet."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    sweep: Path = DEFAULT_SWEEP
    """Sweep file in wandb's form: method, metric, parameters."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further axis, or another one's values, as NAME=VALUE,VALUE; can be repeated."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A fixed value for all trials, as NAME=VALUE; can be repeated."""
    name: str = ""
    """Name of the sweep's folder; by default the file's `name`."""
    dry_run: bool = False
    """Show the trials, what they will cost and the scripts that sbatch would get, and do nothing."""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --dry-run: every trial, cell and script, not only the first ones of many."""
    allow_pipe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --dry-run: fetch manifests from the addresses, or by the commands, that the sweep file names, although you
    have never submitted them. A sweep that is submitted needs no leave."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm submits and returns; local runs processes on this machine until all have ended; debug runs right here."""
    profile: str | None = None
    """What jobs ask for on a cluster, by a name of ~/.config/petseg/profiles.toml; other flags override it."""
    max_parallel: int = 0
    """Jobs at a time, over all arrays of a submission; 0 = one per GPU or 1 with --cluster local, no limit on slurm."""
    trials_per_job: int = 1
    """Trials that one job runs one after the other: imports, decoded caches and the wait in the queue are paid once."""
    trials_at_once: int = 1
    """How many of them train side by side, sharing the job's GPU and its CPU cores: small models leave most of a GPU
    idle. Memory must do for all of them."""
    budget: str = ""
    """Refuse to submit trials that will cost more, such as 20gpuh or 8cpuh."""
    no_probe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Reckon the cost from earlier trials only, not from a few training steps on this machine."""
    batch: int = 0
    """Trials that a search (method bayes) has proposed and that have not ended, at most: 0 = as many as run at a time,
    8 on slurm without --max-parallel. Fewer learn more from each other."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie; every node must see it."""

    def __post_init__(self) -> None:
        for name, lowest in (("max_parallel", 0), ("trials_per_job", 1), ("trials_at_once", 1), ("batch", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {lowest}")
        if self.all and not self.dry_run:
            raise ValueError("--all is for --dry-run")
        if self.name:
            require_name(self.name, "--name")
        if self.budget:
            parse_budget(self.budget)
        _ = self.launch  # which has rules of its own

    @property
    def launch(self) -> Launch:
        return Launch(self.cluster, self.resources, self.max_parallel, self.trials_per_job, self.trials_at_once)

    @property
    def places(self) -> int:
        """How many trials of a search are under way at a time."""
        return self.batch or self.launch.settle(SEARCH_JOBS)[1] * self.trials_per_job


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__, default=Command(resources=profile_of(argv)))
    spec = load_spec(command.sweep).changed(parse_axes(command.axis), parse_settings(command.set, "--set"))
    require_weights(spec)
    cells = expand(spec)
    if command.dry_run and not command.allow_pipe:
        require_known_sets(cells, typed_locations(spec, [*command.set, *command.axis]), command.sweep)
    sets = read_shard_sets(cells)
    folder = command.runs_dir / (command.name or spec.name)
    if spec.method == "bayes" and command.dry_run:
        now = next_round(spec, sets, folder, command.places, record=False)
        cells = [*now.known, *now.new]
    require_possible(command.launch, cells, sets)
    sweep = plan_sweep(spec, cells, sets, folder)
    chosen = sets.by_id(cells)
    if command.dry_run:
        return show_plan(command, sweep, chosen, sets)
    missing = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remember(sets.manifests)
    if command.cluster == "local":
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in the background deaf to Ctrl-C
            signal.signal(number, signal.default_int_handler)
    with launcher_lock(folder), removed_unless_begun(missing, partial(has_begun, folder)):
        search = spec.method == "bayes"
        code = run_search(command, spec, sets, folder) if search else run_sweep(command, sweep, chosen, sets)
        tell_wandb(command.launch, load_sweep(folder))
        return code


def run_search(command: Command, spec: Spec, sets: ShardSets, folder: Path) -> int:
    """Propose trials and run them; again and again until run_cap, but on Slurm once, where they take their time.

    Ends early when all trials of a round have failed: what they have in common would fail the next ones too.
    """
    codes: list[int] = []
    places = command.places
    while True:
        now = next_round(spec, sets, folder, places)
        cells = now.new if codes else [*now.known, *now.new]  # what failed in this search is tried again by the next
        if codes and not cells:
            return max(codes)
        proposed = len(now.known) + len(now.new)
        Terminal(soft_wrap=True).print(
            f"search: {proposed} of {spec.run_cap} trials proposed, {len(now.new)} of them now"
        )
        sweep = plan_sweep(spec, [*now.known, *now.new], sets, folder)
        chosen = sets.by_id(cells)
        codes.append(run_sweep(command, sweep, chosen, sets))
        failed = {row.trial.id for row in standings(sweep) if row.status == "failed"}
        if command.cluster == "slurm" or (chosen and failed.issuperset(chosen)):
            return max(codes)


def run_sweep(command: Command, sweep: Sweep, chosen: dict[str, Cell], sets: ShardSets) -> int:
    """Write the sweep's folder, and submit those of the chosen trials that have no result and no live job."""
    save_sweep(sweep)
    if sweep.early is None:
        for trial in chosen_trials(sweep, chosen):
            trial.go_on()
    for trial in chosen_trials(sweep, chosen):
        claim_folder(with_absolute_paths(chosen[trial.id].config), sweep.hash_of(trial), trial.folder)
    reconcile(sweep)
    rows = [row for row in standings(sweep) if row.trial.id in chosen]
    missing = [row.trial for row in rows if would_run(row, sweep)]
    console = Terminal(soft_wrap=True)
    console.print(f"{sweep.folder}: {len(rows)} trials, {count_text(rows)}, {len(missing)} to submit", highlight=False)
    tell_earlier(sweep, chosen, console)
    tell_enlarged(chosen, sets, console)
    if doubt := unknown_line(rows):
        console.print(doubt, markup=False, highlight=False)
    if missing and command.budget:
        cost = reckon(command, sweep, {trial.id: chosen[trial.id] for trial in missing}, sets)
        console.print(render_cost(cost))
        check_budget(cost, command.budget)
    left: list[Trial] = []
    if missing:
        save_launch(command.launch, sweep.folder)
        left = submit_trials(command.launch, sweep, missing, frozenset(sets.manifests))
    for script in ("jobs/status.py", "jobs/report.py"):
        console.print(typed(script, sweep.folder), markup=False, highlight=False)
    code = tell_end(command.launch, sweep, [row.trial for row in rows], left)
    return code or (NOT_KNOWN if doubt else OK)


def tell_earlier(sweep: Sweep, chosen: Mapping[str, Cell], console: Terminal) -> None:
    """Say what the folder has of other settings, before anything is submitted."""
    if line := earlier_line(sweep, chosen):
        console.print(line, markup=False, highlight=False)


def tell_enlarged(chosen: Mapping[str, Cell], sets: ShardSets, console: Terminal) -> None:
    """Say of each shard set whose pictures are smaller than the trials want them, before anything is submitted."""
    data = [cell.config.data for cell in chosen.values()]
    for line in dict.fromkeys(enlarged_line(sets.manifests[d.shards], d.shards, d.image_size_px) for d in data):
        if line:
            console.print(line, markup=False, highlight=False)


def count_text(rows: Sequence[Standing]) -> str:
    """`4 done, 1 pruned, 3 queued or running, 2 unknown`; what is none is left out but for the first and the third."""
    counts = Counter(row.status for row in rows)
    parts = [f"{counts['done']} done"]
    parts += [f"{counts['pruned']} pruned"] if counts["pruned"] else []
    known = sum(counts[status] for status in LIVE if status != "unknown")
    parts.append(f"{known} queued or running")
    parts += [f"{counts['unknown']} unknown"] if counts["unknown"] else []
    return ", ".join(parts)


def chosen_trials(sweep: Sweep, chosen: dict[str, Cell]) -> list[Trial]:
    return [trial for trial in sweep.trials if trial.id in chosen]


def require_weights(spec: Spec) -> None:
    """Raises ValueError for a file of weights that the sweep names and that is not there."""
    drawn = spec.space[WEIGHTS].values if WEIGHTS in spec.space else ()
    for weights in (spec.fixed.get(WEIGHTS), *spec.axes.get(WEIGHTS, ()), *drawn):
        if str(weights).endswith(WEIGHTS_SUFFIXES) and not Path(weights).is_file():
            raise ValueError(
                f"{WEIGHTS} = {weights!r}: there is no such file in {Path.cwd()}: write its whole path, or make it by "
                f"`{typed('-m', 'petseg.models.weights', 'ENCODER', '--out', weights)}`"
            )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """A job starts in another folder: in that of its snapshot of the code."""
    shards, weights = config.data.shards, config.model.weights
    if not is_remote(shards):
        shards = str(Path(shards).absolute())
    if weights.endswith(WEIGHTS_SUFFIXES):
        weights = str(Path(weights).absolute())
    return with_values(config, {"data.shards": shards, WEIGHTS: weights})


def reckon(command: Command, sweep: Sweep, cells: Mapping[str, Cell], sets: ShardSets) -> Estimate:
    """What the trials of these cells will cost."""
    jobs = -(-len(cells) // command.trials_per_job)
    resources, max_parallel = command.launch.settle(jobs)
    several, at_once = command.trials_per_job, command.trials_at_once
    return estimate(sweep, cells, sets, resources, max_parallel, several, not command.no_probe, at_once)


def show_plan(command: Command, sweep: Sweep, chosen: dict[str, Cell], sets: ShardSets) -> int:
    """The trials, what they will cost, and the scripts that sbatch would get."""
    rows = [row for row in standings(sweep, SLURM_PATIENCE_S) if row.trial.id in chosen]
    missing = [row.trial for row in rows if would_run(row, sweep)]
    console = Terminal(soft_wrap=True)
    console.print(*render_trials(sweep, rows, {trial.id for trial in missing}, command.all), sep="\n")
    if doubt := unknown_line(rows):
        console.print(doubt, markup=False, highlight=False)
    tell_earlier(sweep, chosen, console)
    tell_enlarged(chosen, sets, console)
    if missing:
        cost = reckon(command, sweep, {trial.id: chosen[trial.id] for trial in missing}, sets)
        console.print(render_cost(cost, most_of(len({label_of(trial) for trial in missing}), command.all)))
        if command.budget:
            check_budget(cost, command.budget)
    if sweep.method != "bayes":
        from jobs.reporting.statistics.power_wording import plan_text  # scipy's import takes a second

        splits = [manifest.splits.get("val") for manifest in sets.manifests.values()]
        pictures = min(split.num_samples for split in splits if split) if any(splits) else 0
        console.print(plan_text(sweep, chosen, pictures), markup=False, highlight=False)
    if missing and command.cluster == "slurm":
        jobs = -(-len(missing) // command.trials_per_job)
        resources, max_parallel = command.launch.settle(jobs)
        scripts = render_scripts(
            count=jobs,
            folder=sweep.folder / "logs",
            resources=resources,
            name=job_name(sweep),
            max_parallel=max_parallel,
            patience_s=SLURM_PATIENCE_S,
        )
        console.print(render_scripts_text(scripts, command.all), markup=False, highlight=False)
    return NOT_KNOWN if doubt else OK


def would_run(row: Standing, sweep: Sweep) -> bool:
    """Whether a trial has neither a result nor a live job; what was stopped early goes on once nothing stops it."""
    return row.status not in (*ENDED, *LIVE) or (row.status == "pruned" and sweep.early is None)


if __name__ == "__main__":
    sys.exit(run_command(main))
