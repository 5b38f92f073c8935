"""The way of a sweep: Cells -> Trials -> Observed -> Submitted, once, or round by round for a search."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from jobs.cost.budget import check_budget
from jobs.cost.estimate import Estimate, estimate
from jobs.cost.table import render as render_cost
from jobs.design.cells import Cells, read_spec
from jobs.design.expansion import Cell, expand
from jobs.design.shard_sets import read_shard_sets, require_known_sets, typed_locations
from jobs.launch.journal import reconcile
from jobs.launch.lock import has_begun, launcher_lock
from jobs.launch.options import Options
from jobs.launch.submit import Submitted, report_end, report_wandb, submit_trials
from jobs.runs.earlier_trials import earlier_line
from jobs.runs.launch import Launch, save_launch
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trials import Trials, plan_trials, write_trials
from jobs.search.rounds import next_round
from jobs.state.observed import Observed, observe
from jobs.state.trial_status import LIVE
from petseg.config import OWN_ARCHITECTURES
from petseg.config.training import TrainConfig
from petseg.data.consent import remember
from petseg.data.store import enlarged_line
from petseg.run_folder.new_folder import missing_folders, removed_unless_started
from shards.command import NOT_KNOWN, OK, typed
from shards.terminal import Terminal

ENCODERS = "segmentation_models_pytorch"


def launch_sweep(options: Options) -> int:
    """Submit the trials of a sweep that have no result and no live job, and return the exit code.

    On this machine it waits until they have ended. Raises ValueError for what cannot be run as it is asked for.
    """
    cells = find_cells(options)
    folder = options.folder(cells.spec)
    missing = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remember(cells.sets.manifests)
    if options.cluster == "local":
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets background processes ignore Ctrl-C
            signal.signal(number, signal.default_int_handler)
    with launcher_lock(folder), removed_unless_started(missing, partial(has_begun, folder)):
        if cells.spec.method == "bayes":
            code = run_search(options, cells, folder)
        else:
            code = submit_missing(options, plan_trials(cells, folder))
        report_wandb(options.launch, load_sweep(folder))
        return code


def find_cells(options: Options) -> Cells:
    """The cells that the options ask for, each of which can be trained with these resources and packages.

    With --dry-run those of a search are the ones that it would propose now.
    """
    spec = read_spec(options.sweep, options.axis, options.set, options.recipe)
    cells = expand(spec)
    if options.dry_run and not options.allow_pipe:
        require_known_sets(cells, typed_locations(spec, [*options.set, *options.axis]), options.sweep)
    sets = read_shard_sets(cells)
    if spec.method == "bayes" and options.dry_run:
        now = next_round(spec, sets, options.folder(spec), options.search_slots, record=False)
        cells = [*now.known, *now.new]
    require_possible(options.launch, cells)
    return Cells(spec, tuple(cells), sets)


def require_possible(launch: Launch, cells: Iterable[Cell]) -> None:
    """Raises ValueError for cells that cannot train with these resources and packages."""
    for config in (cell.config for cell in cells):
        _require_resources(config.train, launch)
        if (arch := config.model.arch) not in OWN_ARCHITECTURES and find_spec(ENCODERS) is None:
            raise ValueError(f"model.arch = {arch!r} needs {ENCODERS}: pip install 'petseg[encoders]'")


def _require_resources(train: TrainConfig, launch: Launch) -> None:
    if train.mixed_precision != "fp16" and train.batch_size >= launch.resources.processes:
        return  # nothing to ask this machine for
    resources, _ = launch.settle(1)
    if train.mixed_precision == "fp16" and not resources.gpus_per_node:
        raise ValueError(
            "train.mixed_precision = 'fp16' needs a GPU, and these trials have none: add --set "
            "train.mixed_precision=bf16"
        )
    if train.batch_size < resources.processes:
        raise ValueError(
            f"train.batch_size = {train.batch_size} is the batch of all {resources.processes} processes of a trial "
            "together: raise it, or ask for fewer --nodes or --gpus"
        )


def run_search(options: Options, cells: Cells, folder: Path) -> int:
    """Propose trials and run them; again and again until run_cap, but on Slurm once, where they take their time.

    Ends early when all trials of a round have failed: what they have in common would fail the next ones too.
    """
    codes: list[int] = []
    while True:
        now = next_round(cells.spec, cells.sets, folder, options.search_slots)
        meant = now.new if codes else [*now.known, *now.new]  # the next search retries what failed in this one
        if codes and not meant:
            return max(codes)
        proposed = (*now.known, *now.new)
        Terminal(soft_wrap=True).print(
            f"search: {len(proposed)} of {cells.spec.run_cap} trials proposed, {len(now.new)} of them now"
        )
        trials = plan_trials(Cells(cells.spec, proposed, cells.sets), folder, meant)
        codes.append(submit_missing(options, trials))
        failed = {row.trial.id for row in observe(trials.sweep).rows if row.status == "failed"}
        if options.cluster == "slurm" or (trials.cells and failed.issuperset(trials.cells)):
            return max(codes)


def submit_missing(options: Options, trials: Trials) -> int:
    """Write the sweep's folder, and submit those of the trials that have no result and no live job."""
    sweep = trials.sweep
    write_trials(trials)
    reconcile(sweep)
    observed = observe(sweep).of(trials.cells)
    missing = observed.missing
    console = Terminal(soft_wrap=True)
    console.print(
        f"{sweep.folder}: {len(observed.rows)} trials, {count_text(observed)}, {len(missing)} to submit",
        highlight=False,
    )
    print_warnings(trials, observed, console)
    if missing and options.budget:
        cost = estimate_cost(options, trials.only(missing))
        console.print(render_cost(cost))
        check_budget(cost, options.budget)
    submitted = Submitted(tuple(row.trial for row in observed.rows))
    if missing:
        save_launch(options.launch, sweep.folder)
        named = frozenset(trials.sets.manifests)
        submitted = Submitted(submitted.trials, submit_trials(options.launch, sweep, missing, named).left)
    for script in ("jobs/status.py", "jobs/report.py"):
        console.print(typed(script, sweep.folder), markup=False, highlight=False)
    return report_end(options.launch, sweep, submitted) or (NOT_KNOWN if observed.doubt else OK)


def print_warnings(trials: Trials, observed: Observed, console: Terminal) -> None:
    """Print, before anything is submitted, a line about trials of other settings in the folder, about shard sets whose
    pictures would be enlarged, and about jobs whose state Slurm does not say."""
    manifests, data = trials.sets.manifests, [cell.config.data for cell in trials.cells.values()]
    enlarged = [enlarged_line(manifests[one.shards], one.shards, one.image_size_px, one.fit) for one in data]
    for line in dict.fromkeys([earlier_line(trials.sweep, trials.cells), *enlarged, observed.doubt]):
        if line:
            console.print(line, markup=False, highlight=False)


def count_text(observed: Observed) -> str:
    """`4 done, 1 pruned, 3 queued or running, 2 unknown`; zeros are left out except for the first and the third."""
    counts = Counter(row.status for row in observed.rows)
    parts = [f"{counts['done']} done"]
    parts += [f"{counts['pruned']} pruned"] if counts["pruned"] else []
    known = sum(counts[status] for status in LIVE if status != "unknown")
    parts.append(f"{known} queued or running")
    parts += [f"{counts['unknown']} unknown"] if counts["unknown"] else []
    return ", ".join(parts)


def estimate_cost(options: Options, trials: Trials) -> Estimate:
    """What these trials will cost."""
    return estimate(trials, options.launch, probe=not options.no_probe)
