"""Run a sweep: one job per trial, and only for trials that have no result yet.

python jobs/sweep.py --partition gpu
python jobs/sweep.py --cluster local --max-parallel 2 --set train.epochs=3 --axis train.seed=0
python jobs/sweep.py --partition gpu --dry-run
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from jobs.cost import Estimate, check_budget, estimate, parse_budget
from jobs.cost import render as render_cost
from jobs.intent import announce, reconcile
from jobs.snapshot import take_snapshot
from jobs.spec import Cell, expand, load_spec, parse_axes, parse_settings
from jobs.status import LIVE, Standing, standings
from jobs.task import TrialTask
from jobs.trial import LAUNCH_NAME, Submission, Sweep, Trial, load_sweep, plan_sweep, save_sweep
from petseg.config import trial_id
from petseg.data.store import is_remote, read_manifest
from petseg.run_folder import claim_folder, load_overrides, save_overrides
from shards.command import FAILED, OK, run_command
from shards.manifest import Manifest, write_whole
from slurm.executor import render_sbatch, submit
from slurm.local import visible_gpus
from slurm.profiles import profile_of
from slurm.resources import Resources

DEFAULT_SWEEP = Path(__file__).parent / "sweeps" / "lab.yaml"

NOTED_TOGETHER = 1000  # submissions that one write notes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """Run a sweep: one job per trial, and only for trials that have no result yet."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    profile: str | None = None
    """What jobs ask for on a cluster, by a name of ~/.config/petseg/profiles.toml; other flags override it."""
    sweep: Path = DEFAULT_SWEEP
    """Sweep file in wandb's form: method, metric, parameters."""
    name: str = ""
    """Name of the sweep's folder; by default the file's `name`."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie; every node must see it."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm submits and returns; local runs processes on this machine until all have ended; debug runs right here."""
    max_parallel: int = 0
    """Jobs at a time; 0 = one per GPU or 1 with --cluster local, no limit on slurm."""
    trials_per_job: int = 1
    """Trials that one job runs one after the other: imports, decoded caches and the wait in the queue are paid once."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further axis, or another one's values, as NAME=VALUE,VALUE; can be repeated."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A fixed value for all trials, as NAME=VALUE; can be repeated."""
    dry_run: bool = False
    """Show the trials, what they will cost and the sbatch text, and do nothing."""
    budget: str = ""
    """Refuse to submit trials that will cost more, such as 20gpuh or 8cpuh."""
    no_probe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Reckon the cost from earlier trials only, not from a few training steps on this machine."""

    def __post_init__(self) -> None:
        for name, lowest in (("max_parallel", 0), ("trials_per_job", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {lowest}")
        if self.budget:
            parse_budget(self.budget)


def main(argv: Sequence[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, default=Command(resources=profile_of(argv)), description=__doc__)
    spec = load_spec(command.sweep).changed(parse_axes(command.axis), parse_settings(command.set, "--set"))
    cells = expand(spec)
    data = cells[0].config.data
    manifest = read_manifest(data.shards, data.cache_dir, data.cache_gb)
    folder = command.runs_dir / (command.name or spec.name)
    sweep = plan_sweep(spec, cells, manifest, data.shards, folder)
    chosen = {trial_id(cell.config, manifest.hash): cell for cell in cells}
    if command.dry_run:
        return show_plan(command, sweep, chosen, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    if command.cluster == "local":
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in the background deaf to Ctrl-C
            signal.signal(number, signal.default_int_handler)
    with launcher_lock(folder):
        return run_sweep(command, sweep, chosen, manifest)


def run_sweep(command: Command, sweep: Sweep, chosen: dict[str, Cell], manifest: Manifest) -> int:
    """Write the sweep's folder, and submit those of the chosen trials that have no result and no live job."""
    save_sweep(sweep)
    for trial in chosen_trials(sweep, chosen):
        config = replace(chosen[trial.id].config, data=absolute_shards(chosen[trial.id].config.data))
        claim_folder(config, sweep.manifest_hash, trial.folder)
    reconcile(sweep)
    rows = [row for row in standings(sweep) if row.trial.id in chosen]
    missing = [row.trial for row in rows if row.status != "done" and row.status not in LIVE]
    done, live = (sum(row.status == "done" for row in rows), sum(row.status in LIVE for row in rows))
    console = Console(soft_wrap=True)
    console.print(
        f"{sweep.folder}: {len(rows)} trials, {done} done, {live} queued or running, {len(missing)} to submit"
    )
    if missing and command.budget:
        cost = reckon(command, sweep, {trial.id: chosen[trial.id] for trial in missing}, manifest)
        console.print(render_cost(cost))
        check_budget(cost, command.budget)
    if missing:
        launch = Launch(command.cluster, command.resources, command.max_parallel, command.trials_per_job)
        write_whole(sweep.folder / LAUNCH_NAME, json.dumps(asdict(launch), indent=2) + "\n")
        submit_trials(launch, sweep, missing)
    console.print(f"python jobs/status.py {sweep.folder}\npython jobs/report.py {sweep.folder}", highlight=False)
    if command.cluster == "slurm":
        return OK
    return say_failures([row for row in standings(sweep) if row.trial.id in chosen and row.status != "done"])


def chosen_trials(sweep: Sweep, chosen: dict[str, Cell]) -> list[Trial]:
    return [trial for trial in sweep.trials if trial.id in chosen]


def absolute_shards(data: Any) -> Any:
    """A job may start in another folder."""
    return data if is_remote(data.shards) else replace(data, shards=str(Path(data.shards).absolute()))


@dataclass(frozen=True)
class Launch:
    """How trials are submitted; launch.json keeps the last one for `jobs/retry.py`."""

    cluster: Literal["slurm", "local", "debug"]
    resources: Resources
    max_parallel: int
    trials_per_job: int


def resubmit(folder: Path, trial_ids: Sequence[str], overrides: Mapping[str, Mapping[str, Any]]) -> int:
    """Submit trials of a sweep again as it was launched last, some with config fields changed so that they fit.

    Raises ValueError if the sweep was never launched, or another launcher is at work.
    """
    sweep = load_sweep(folder)
    try:
        content = json.loads((folder / LAUNCH_NAME).read_text())
        launch = Launch(**content | {"resources": Resources(**content["resources"])})
    except (FileNotFoundError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / LAUNCH_NAME} cannot be used ({error!r}): run jobs/sweep.py again") from None
    with launcher_lock(folder):
        reconcile(sweep)
        for identifier, values in overrides.items():
            trial_folder = folder / "trials" / identifier
            save_overrides({**load_overrides(trial_folder), **values}, trial_folder)
        trials = [trial for trial in sweep.trials if trial.id in set(trial_ids)]
        submit_trials(launch, sweep, trials)
        if launch.cluster == "slurm":
            return OK
        return say_failures([row for row in standings(sweep) if row.trial in trials and row.status != "done"])


@contextmanager
def launcher_lock(folder: Path) -> Iterator[None]:
    """One launcher at a time; raises ValueError if another is at work."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another launcher is at work on {folder}: see `python jobs/status.py {folder}`") from None


def submit_trials(command: Launch, sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Jobs of one or several trials each; all is noted in submissions.jsonl, the intent too."""
    size = command.trials_per_job
    groups = [trials[start : start + size] for start in range(0, len(trials), size)]
    resources, max_parallel = settle(command, len(groups))

    submitted: list[Submission] = []

    def on_job(index: int, job: Any, state: str) -> None:
        for trial in groups[index]:
            if state == "ended":
                logger.info("%s %s: %s", trial.id, trial.label, describe(trial))
                continue
            submitted.append(Submission(trial.id, job.job_id, command.cluster, str(job.paths.stdout)))
            place = f"{index + 1} of {len(groups)}"
            logger.info("%s %s: %s as job %s (%s)", trial.id, trial.label, state, job.job_id, place)
        if state == "started" or index + 1 == len(groups) or len(submitted) >= NOTED_TOGETHER:
            sweep.add_submissions(submitted)
            submitted.clear()

    snapshot = take_snapshot(sweep.folder / "code")
    submit(
        TrialTask(sweep.name, resources.processes, resources.cpus_per_task),
        [[str(trial.folder.absolute()) for trial in group] for group in groups],
        cluster=command.cluster,
        folder=sweep.folder / "logs",
        resources=resources,
        name=f"petseg-{sweep.name}",
        max_parallel=max_parallel,
        on_job=on_job,
        announce=partial(announce, sweep, groups),
        variables=snapshot.variables(),
    )


def settle(command: Command | Launch, num_trials: int) -> tuple[Resources, int]:
    """The resources and the limit of parallel trials that hold for this cluster."""
    resources, max_parallel = command.resources, command.max_parallel
    if command.cluster == "slurm":
        return resources, max_parallel or num_trials
    gpus = visible_gpus()
    if not gpus and resources.gpus_per_node:
        logger.info("no GPU on this machine: the trials run on the CPU")
        resources = replace(resources, gpus_per_node=0)
    max_parallel = max_parallel or max(1, len(gpus) // max(1, resources.gpus_per_node))
    cores = len(os.sched_getaffinity(0))  # two OpenMP threads on one core would only wait for each other
    threads = max(1, cores // (max_parallel * resources.processes_per_node))
    return replace(resources, cpus_per_task=threads), max_parallel


def reckon(command: Command, sweep: Sweep, cells: Mapping[str, Cell], manifest: Manifest) -> Estimate:
    """What the trials of these cells will cost."""
    jobs = -(-len(cells) // command.trials_per_job)
    resources, max_parallel = settle(command, jobs)
    return estimate(sweep, cells, manifest, resources, max_parallel, command.trials_per_job, not command.no_probe)


def describe(trial: Trial) -> str:
    result, state = trial.result(), trial.state()
    if result is not None:
        return f"done, val Dice {result.metrics['val/dice']:.4f}"
    return f"{state.get('status', 'ended')} {state.get('error', '')}"


def say_failures(rows: Sequence[Standing]) -> int:
    for row in rows:
        logger.error("%s %s: %s %s; its log: %s", row.trial.id, row.trial.label, row.status, row.note, row.log)
    return FAILED if rows else OK


def show_plan(command: Command, sweep: Sweep, chosen: dict[str, Cell], manifest: Manifest) -> int:
    """The trials, and the script that sbatch would get."""
    trials = chosen_trials(sweep, chosen)
    table = Table(title=f"{sweep.folder}: {len(trials)} trials", title_justify="left")
    for column in ("trial", *sweep.axes, "state"):
        table.add_column(column)
    for trial in trials:
        state = "done" if trial.result() else "to run"
        table.add_row(trial.id, *(str(trial.axes.get(name, "")) for name in sweep.axes), state)
    console = Console(soft_wrap=True)
    console.print(table)
    missing = sum(trial.result() is None for trial in trials)
    if missing:
        cost = reckon(command, sweep, chosen, manifest)
        console.print(render_cost(cost))
        if command.budget:
            check_budget(cost, command.budget)
    if command.cluster == "slurm" and missing:
        jobs = -(-missing // command.trials_per_job)
        resources, max_parallel = settle(command, jobs)
        text = render_sbatch(
            count=jobs,
            folder=sweep.folder / "logs",
            resources=resources,
            name=f"petseg-{sweep.name}",
            max_parallel=max_parallel,
        )
        console.print(text, markup=False, highlight=False)
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
