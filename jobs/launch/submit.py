"""Submits a sweep's trials as jobs: all at once, or as many as there is room for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jobs.launch.journal import announce, reconcile
from jobs.launch.local_progress import LocalProgress, shown
from jobs.launch.lock import launcher_lock
from jobs.node.task import TrialTask
from jobs.runs.launch import Launch, leave_out, load_launch
from jobs.runs.snapshot import take_snapshot
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.observed import observe
from jobs.state.processes import HERE
from jobs.state.trial_status import TrialStatus
from jobs.state.wandb_status import wandb_status
from petseg.data.consent import remember, require_known
from petseg.data.store import is_remote
from petseg.run_folder.layout import CONFIG_NAME, load_config, load_overrides, save_overrides
from shards.cause import Cause
from shards.command import FAILED, INTERRUPTED, OK
from shards.files import require_own_folder
from shards.terminal import Terminal
from slurm.executor import submit
from slurm.request import Request
from slurm.resources import Resources

NOTED_TOGETHER = 1000  # submissions that one write notes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    """The trials of a submission, and those of them that Slurm had no room for, or did not answer about."""

    trials: tuple[Trial, ...]
    left: tuple[Trial, ...] = ()


@dataclass
class JobLog:
    """Records and shows each job of a submission when it is submitted, starts and ends."""

    launch: Launch
    sweep: Sweep
    groups: Sequence[Sequence[Trial]]  # of one job each
    progress: LocalProgress
    submitted: list[Submission] = field(default_factory=list)  # not noted yet
    under_way: dict[int, str] = field(default_factory=dict)  # jobs of this machine: index of the group -> job id

    def on_job(self, index: int, job: Any, state: str) -> None:
        """What slurm.executor.submit reports of a job."""
        group, position = self.groups[index], f"{index + 1} of {len(self.groups)}"
        if state == "ended":
            self.under_way.pop(index)
            self.progress.ended(group)
            return
        log = str(job.paths.stdout)
        self.submitted.extend(Submission(trial.id, job.job_id, self.launch.cluster, log) for trial in group)
        if state == "started":
            self.under_way[index] = job.job_id
            self.progress.started(group, job.job_id, position)
        else:
            for trial in group:
                logger.info("%s %s: submitted as job %s (%s)", trial.id, trial.label, job.job_id, position)
        if state == "started" or index + 1 == len(self.groups) or len(self.submitted) >= NOTED_TOGETHER:
            self.note()

    def note(self) -> None:
        """Record the jobs that were submitted since the last call."""
        if self.submitted:
            self.sweep.add_submissions(self.submitted)
            self.submitted.clear()

    def stopped(self) -> list[tuple[Trial, str]]:
        """The trials under way, with the ids of their jobs."""
        return [(trial, job_id) for index, job_id in self.under_way.items() for trial in self.groups[index]]


def submit_trials(
    launch: Launch, sweep: Sweep, trials: Sequence[Trial], named: frozenset[str] = frozenset()
) -> Submitted:
    """Submit jobs of one or several trials each; submissions.jsonl records them, and the intent before.

    named: shard sets that the user names; jobs fetch only from these, and read folders.
    """

    def task(resources: Resources) -> TrialTask:
        threads = max(1, resources.cpus_per_task // launch.trials_at_once)
        return TrialTask(resources.processes, threads, launch.trials_at_once, tuple(sorted(named)))

    return submit_tasks(launch, sweep, trials, task)


def submit_tasks(
    launch: Launch,
    sweep: Sweep,
    trials: Sequence[Trial],
    make_task: Callable[[Resources], Callable[[Sequence[str]], None]],
    show: bool = True,
) -> Submitted:
    """As `submit_trials`, with what the jobs do with the folders of their trials.

    make_task: gets the resources that each job has. show: with --cluster local, how far the trials are.
    """
    size = launch.trials_per_job
    groups = [trials[start : start + size] for start in range(0, len(trials), size)]
    live_jobs = observe(sweep).slurm_jobs if launch.cluster == "slurm" and launch.max_parallel else ()
    resources, max_parallel = launch.settle(len(groups), live_jobs)
    if resources.dependency != launch.resources.dependency:
        logger.info(
            "--max-parallel %d: the new jobs wait until the %d jobs of earlier submissions have ended",
            max_parallel, len(live_jobs),
        )  # fmt: skip
    progress = LocalProgress(trials, max_parallel * launch.trials_at_once)
    log = JobLog(launch, sweep, groups, progress)
    require_own_folder(sweep.folder / "logs")
    request = Request(
        sweep.folder / "logs",
        resources,
        job_name(sweep),
        max_parallel,
        variables=take_snapshot(sweep.folder / "code").variables(),
        announce=partial(announce, sweep, groups),
        withdraw=sweep.withdraw_intent,
        as_many_as_fit=True,
    )
    folders = [[str(trial.folder.absolute()) for trial in group] for group in groups]
    stack = ExitStack()
    if launch.cluster != "slurm" and show:
        stack.enter_context(shown(progress, lines=launch.cluster == "local"))
    try:
        jobs = submit(make_task(resources), folders, launch.cluster, request, log.on_job)
    except KeyboardInterrupt:
        stack.close()
        raise KeyboardInterrupt(_report_stop(trials, log.stopped())) from None
    finally:
        stack.close()
        log.note()  # the first of several arrays, if another did not fit or was refused
    return Submitted(tuple(trials), tuple(trial for group in groups[len(jobs) :] for trial in group))


def job_name(sweep: Sweep) -> str:
    return f"petseg-{sweep.name}"


def resubmit(
    folder: Path,
    trial_ids: Sequence[str],
    overrides: Mapping[str, Mapping[str, Any]],
    exclude: Sequence[str] = (),
    allow_pipe: bool = False,
) -> int:
    """Submit trials of a sweep again as it was launched last, some with config fields changed so that they fit.

    exclude: nodes to leave out beside those that the launch left out, such as `node[3-4]`
    allow_pipe: fetch shards as the trials' configs say, although the user has never named them
    Raises ValueError if the sweep was never launched, or without Slurm where nodes are to be left out, or if another
    launcher is at work.
    """
    sweep, launch = load_sweep(folder), leave_out(load_launch(folder), exclude)
    trials = [trial for trial in sweep.trials if trial.id in set(trial_ids)]
    named = frozenset(remote_sets(trials))
    if not allow_pipe:
        for location in named:
            require_known(location, f"{folder}, in its trials' {CONFIG_NAME},")
    remember(named)
    with launcher_lock(folder):
        reconcile(sweep)
        before = {trial.id: load_overrides(trial.folder) for trial in trials if trial.id in overrides}
        for identifier, values in before.items():
            save_overrides({**values, **overrides[identifier]}, folder / "trials" / identifier)
        earlier = sweep.submissions()
        try:
            submitted = submit_trials(launch, sweep, trials, named)
        finally:
            for identifier in _without_new_job(before, earlier, sweep):  # or the next try would change it once more
                save_overrides(before[identifier], folder / "trials" / identifier)
        code = report_end(launch, sweep, submitted)
        report_wandb(launch, sweep)
        return code


def _without_new_job(ids: Iterable[str], earlier: Mapping[str, Submission], sweep: Sweep) -> list[str]:
    now = sweep.submissions()
    return [identifier for identifier in ids if now.get(identifier) == earlier.get(identifier)]


def remote_sets(trials: Iterable[Trial]) -> list[str]:
    """The locations that the trials' configs name from which shards are fetched, or read by a command."""
    named = {str(load_config(trial.folder)["config"].get("data", {}).get("shards", "")) for trial in trials}
    return sorted(location for location in named if is_remote(location))


def report_end(launch: Launch, sweep: Sweep, submitted: Submitted) -> int:
    """Report which trials were not submitted, or have failed on this machine; returns the exit code."""
    if launch.cluster != "slurm":
        ids = {trial.id for trial in submitted.trials}
        return _report_failures(observe(sweep).of(ids).unfinished)
    if not submitted.left:
        return OK
    several = "" if launch.trials_per_job > 1 else "; --trials-per-job puts several trials into each job"
    Terminal(soft_wrap=True).print(
        f"{len(submitted.left)} of {len(submitted.trials)} trials are left as planned: Slurm takes no more of your "
        f"jobs now, for the reason above. The same command again submits them later{several}",
        highlight=False,
    )
    return INTERRUPTED


def report_wandb(launch: Launch, sweep: Sweep) -> None:
    """Report where wandb shows the sweep, or why it does not, if this process has waited for the trials."""
    if launch.cluster != "slurm":
        for line in wandb_status(sweep.folder, observe(sweep).rows).lines():
            Terminal(soft_wrap=True).print(line, markup=False, highlight=False)


def _report_stop(trials: Sequence[Trial], stopped: Sequence[tuple[Trial, str]]) -> str:
    """Record in the states of stopped trials that the launcher was stopped; returns the message for the user.

    stopped: with the ids of their jobs, all of whose processes are gone
    """
    for trial, job_id in stopped:
        if trial.result() is None and trial.pruned() is None:
            own = trial.state().of_job(job_id)
            own = own if own.job_id else TrialState(host=HERE, job_id=job_id)
            if own.status != "failed":
                error = own.error or "the sweep was stopped before it began"
                trial.write_state(replace(own, status="interrupted", cause=Cause.STOPPED, error=error))
    done = sum(trial.result() is not None for trial in trials)
    return f"{done} of {len(trials)} trials are done; the same command resumes the others from what is saved"


def _report_failures(rows: Sequence[TrialStatus]) -> int:
    for row in rows:
        state = f"{row.status}: {row.note}" if row.note else row.status
        logger.error("%s %s: %s%s", row.trial.id, row.trial.label, state, f"; its log: {row.log}" if row.log else "")
    return FAILED if rows else OK
