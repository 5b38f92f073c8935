"""The way of a prediction by jobs: pictures -> those that are missing -> parts -> jobs; the same command goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jobs.launch.dry_run import SLURM_PATIENCE_S
from jobs.launch.journal import cut_off_submissions, reconcile
from jobs.launch.prediction_options import PredictionOptions
from jobs.launch.submit import job_name, submit_tasks
from jobs.node.prediction import PredictTask, finish, output_folder
from jobs.reporting.best_trials import best_trials
from jobs.runs.parts import JOBS_NAME, PICTURES_NAME, drop_part, load_parts, plan_parts, read_pictures, write_pictures
from jobs.runs.single_runs import find_runs
from jobs.runs.trial import Sweep, Trial
from jobs.state.observed import Observed, observe
from petseg.inference.many.inputs import Input, list_inputs
from petseg.inference.many.outputs import COMMAND_NAME, WINNER_NAME, Journal, OutputFolder, Row
from petseg.inference.many.wanted import identity
from petseg.inference.winner import write_winner
from shards.command import FAILED, INTERRUPTED, NOT_KNOWN, OK
from shards.terminal import Terminal
from slurm.arrays import render_scripts
from slurm.request import Request
from slurm.resources import Resources

SOME_BAD = 1  # exit code: some pictures could not be read
LISTED = 20  # of them, and of parts that failed


@dataclass(frozen=True)
class Standing:
    """Where a prediction stands: its pictures, what jobs hold of them, and what nobody does."""

    observed: Observed  # the parts that were planned earlier
    items: Sequence[Input]
    held: frozenset[str]  # names of pictures that a job predicts, or will
    missing: Sequence[Input]

    @property
    def text(self) -> str:
        held = sum(item.name in self.held for item in self.items)
        done = len(self.items) - held - len(self.missing)
        return f"{len(self.items)} pictures, {done} done, {held} in {len(self.observed.live)} queued or running jobs"


def launch_prediction(options: PredictionOptions) -> int:
    """Submit the pictures that have no mask and no live job, and return the exit code.

    On this machine it waits until they are done. Raises ValueError for what cannot be run as it is asked for.
    """
    options.require_complete()
    output = output_folder(options.wanted, options.out)
    with output.locked():
        weights = settle_weights(options)
        output.claim(identity_of(options, weights))
        sweep = load_parts(options.out)
        recover(sweep)
        standing = look(options, output, sweep)
        if not standing.observed.live:
            output.remove_half_written()
        _print(f"{options.out}: {standing.text}, {len(standing.missing)} to submit")
        print_ended(standing.observed)
        write_pictures(standing.items, sweep.folder / PICTURES_NAME)
        left = submit_missing(options, standing, weights) if standing.missing else 0
        under_way = options.cluster == "slurm" and (standing.missing or standing.observed.live)
        if not under_way and (bad := finish(output, weights[0])) is not None:
            return report(options, bad)
        return report_unfinished(options, left) or (NOT_KNOWN if standing.observed.doubt else OK)


def settle_weights(options: PredictionOptions) -> tuple[Path, ...]:
    """The weights files; a sweep's winner is written into the folder by its first command, and kept there."""
    if options.weights:
        return tuple(path.absolute() for path in options.weights)
    path = options.out.absolute() / WINNER_NAME
    if not (path.exists() and (options.out / COMMAND_NAME).exists()):
        trials = best_trials(find_runs(options.sweep, options.runs_dir), all_seeds=False)
        write_winner([trial.folder for trial in trials], path, "best", False, None)
    return (path,)


def identity_of(options: PredictionOptions, weights: Sequence[Path]) -> dict[str, Any]:
    """What the outputs depend on; the field `sweep` also keeps petseg.predict from working beside the jobs."""
    named = options.sweep and str(find_runs(options.sweep, options.runs_dir).folder.absolute())
    return {**identity(options.wanted, weights, options.source), "sweep": named}


def recover(sweep: Sweep) -> None:
    """Find the jobs of a launcher that was killed; parts that have none will be dropped."""
    reconcile(sweep)
    for intent in {submission.intent for submission in cut_off_submissions(sweep)}:
        sweep.withdraw_intent(intent)


def look(options: PredictionOptions, output: OutputFolder, sweep: Sweep, patience_s: float | None = None) -> Standing:
    """Compare the pictures with the outputs and with the parts that jobs hold."""
    items = list_inputs(options.source, (), options.out)
    observed = observe(sweep, patience_s)  # before the journals: what a job does meanwhile is then not done twice
    held: set[str] = set()
    for row in observed.live:
        with contextlib.suppress(FileNotFoundError):
            held.update(item.name for item in read_pictures(row.trial.folder / PICTURES_NAME))
    journal = Journal(options.out)

    def is_settled(item: Input) -> bool:
        row = journal.row(item.name)
        return output.is_done(row) or (row is not None and bool(row.error) and not options.again)

    missing = [item for item in items if item.name not in held and not is_settled(item)]
    undone = frozenset(name for name in held if not output.is_done(journal.row(name)))
    return Standing(observed, items, undone, missing)


def submit_missing(options: PredictionOptions, standing: Standing, weights: Sequence[Path]) -> int:
    """Submit the missing pictures as new parts; returns how many parts Slurm has no room for."""
    sweep = standing.observed.sweep
    live = {row.trial.id for row in standing.observed.live}
    for part in sweep.trials:
        if part.id not in live:
            drop_part(part)
    planned = plan_parts(options.out, standing.missing, options.parts)
    for part, items in planned:
        write_pictures(items, part.folder / PICTURES_NAME)
    parts = [part for part, _ in planned]
    kept = [part for part in sweep.trials if part.id in live]
    make_task = partial(task_of, options, tuple(map(str, weights)))
    sweep = replace(sweep, trials=(*kept, *parts))
    try:
        return len(submit_tasks(options.launch, sweep, parts, make_task, show=False).left)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command predicts what is missing") from None


def task_of(options: PredictionOptions, weights: tuple[str, ...], resources: Resources) -> PredictTask:
    out = str(options.out.absolute())
    return PredictTask(weights, options.wanted, out, str(Path.cwd()), resources.cpus_per_task)


def show_prediction(options: PredictionOptions) -> int:
    """Print what would be submitted, and the script that sbatch would get; returns the exit code."""
    options.require_complete()
    output = output_folder(options.wanted, options.out)
    output.require_ours()
    if options.sweep:
        (best,) = best_trials(find_runs(options.sweep, options.runs_dir), all_seeds=False)
        _print(f"weights: {best.id} {best.label}")
    sweep = load_parts(options.out)
    standing = look(options, output, sweep, SLURM_PATIENCE_S)
    planned = plan_parts(options.out, standing.missing, options.parts)
    jobs = f"to submit in {len(planned)} jobs"
    _print(f"{options.out}: {standing.text}, {len(standing.missing)} {jobs}")
    if planned and options.cluster == "slurm":
        resources, max_parallel = options.launch.settle(len(planned), standing.observed.slurm_jobs)
        request = Request(options.out / JOBS_NAME / "logs", resources, job_name(sweep), max_parallel)
        for script in render_scripts(len(planned), request, SLURM_PATIENCE_S):
            _print(script)
    return NOT_KNOWN if standing.observed.doubt else OK


def print_ended(observed: Observed) -> None:
    """Why parts ended before they were done; their pictures go into new parts."""
    ended = [row for row in observed.rows if row.status in ("failed", "interrupted")]
    for row in [row for row in ended if row.trial.state().status != "done"][:LISTED]:
        _print(f"part {row.trial.id} {row.status}: {row.note}; its log: {row.log}")
    if observed.doubt:
        _print(observed.doubt)


def report(options: PredictionOptions, bad: Sequence[Row]) -> int:
    """All pictures are done but for those that cannot be read."""
    _print(f"{options.out}: all done, see {options.out / 'summary.csv'}")
    for row in bad[:LISTED]:
        _print(f"not read: {row.path}: {row.error}")
    if len(bad) > LISTED:
        _print(f"and {len(bad) - LISTED} more, listed in {options.out / 'summary.csv'}")
    return SOME_BAD if bad else OK


def report_unfinished(options: PredictionOptions, left: int) -> int:
    """What the user is told while pictures are left; returns the exit code."""
    if options.cluster != "slurm":
        for part in unfinished_parts(options.out):
            state = part.state()
            _print(f"part {part.id}: {state.status or 'not begun'} {state.error}".rstrip())
        _print(f"pictures are left: see the logs in {options.out / JOBS_NAME / 'logs'}, and run the same command again")
        return FAILED
    if left:
        _print(f"{left} jobs are left: Slurm takes no more of yours now. The same command again submits them later")
        return INTERRUPTED
    _print("the same command again shows how far they are, and submits again what is missing by then")
    return OK


def unfinished_parts(out: Path) -> list[Trial]:
    return [part for part in load_parts(out).trials if part.state().status != "done"]


def _print(text: str) -> None:
    Terminal(soft_wrap=True).print(text, markup=False, highlight=False)
