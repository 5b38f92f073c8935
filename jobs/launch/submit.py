"""How a sweep's trials become jobs: by one launcher at a time, all at once or as many as there is room for."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from jobs.launch.journal import announce, reconcile
from jobs.launch.local_progress import LocalProgress, shown
from jobs.node.task import TrialTask
from jobs.runs.snapshot import take_snapshot
from jobs.runs.trial import LAUNCH_NAME, SWEEP_NAME, Submission, Sweep, Trial, load_sweep
from jobs.runs.trial_state import TrialState
from jobs.state.processes import HERE
from jobs.state.trial_status import ENDED, Standing, standings
from jobs.state.wandb_status import wandb_standing
from petseg.data.consent import remember, require_known
from petseg.data.store import is_remote
from petseg.run_folder.layout import CONFIG_NAME, load_config, load_overrides, save_overrides
from shards.cause import Cause
from shards.command import FAILED, INTERRUPTED, OK, typed
from shards.files import build, read_json_object, require_own_folder
from shards.manifest import write_whole
from shards.terminal import Terminal
from slurm.executor import submit
from slurm.local import visible_gpus
from slurm.resources import Resources

NOT_MINE = (errno.EACCES, errno.EPERM, errno.EROFS)
NOTED_TOGETHER = 1000  # submissions that one write notes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How trials are submitted; launch.json keeps the last one for `jobs/retry.py`."""

    cluster: Literal["slurm", "local", "debug"]
    resources: Resources
    max_parallel: int
    trials_per_job: int
    trials_at_once: int = 1  # of one job

    def __post_init__(self) -> None:
        if self.trials_at_once == 1:
            return
        if self.trials_at_once > self.trials_per_job:
            raise ValueError(
                f"--trials-at-once {self.trials_at_once}: a job has no more than --trials-per-job "
                f"{self.trials_per_job}; raise that too"
            )
        if self.cluster == "debug":
            raise ValueError("--trials-at-once: --cluster debug runs trials in one process; take --cluster local")
        if self.resources.processes > 1:
            raise ValueError(
                f"--trials-at-once {self.trials_at_once}: the trials share a job of one process, and this one has "
                f"{self.resources.processes}; take --gpus 1 (or 0) and --nodes 1"
            )

    def settle(self, num_jobs: int) -> tuple[Resources, int]:
        """The resources and the limit of parallel jobs that hold for this cluster."""
        resources, max_parallel = self.resources, self.max_parallel
        if self.cluster == "slurm":
            return resources, max_parallel or num_jobs
        gpus = visible_gpus()
        if not gpus and resources.gpus_per_node:
            logger.info("no GPU on this machine: the trials run on the CPU")
            resources = replace(resources, gpus_per_node=0)
        max_parallel = max_parallel or max(1, len(gpus) // max(1, resources.gpus_per_node))
        cores = len(os.sched_getaffinity(0))  # two OpenMP threads on one core would only wait for each other
        threads = max(1, cores // (max_parallel * resources.processes_per_node))
        return replace(resources, cpus_per_task=threads), max_parallel


def save_launch(launch: Launch, folder: Path) -> None:
    write_whole(folder / LAUNCH_NAME, json.dumps(asdict(launch), indent=2) + "\n")


def load_launch(folder: Path) -> Launch:
    """How the sweep was launched last; raises ValueError if it never was."""
    try:
        content = read_json_object(folder / LAUNCH_NAME, "delete it")
        return build(Launch, content | {"resources": build(Resources, content["resources"])})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / LAUNCH_NAME} cannot be used ({error}): run jobs/sweep.py again") from None


def leave_out(launch: Launch, nodes: Sequence[str]) -> Launch:
    """Leave out these nodes; raises ValueError for a launch that has none, because it does not go to Slurm."""
    if not nodes:
        return launch
    if launch.cluster != "slurm":
        raise ValueError(f"--exclude: the sweep runs by --cluster {launch.cluster}, which has no nodes to leave out")
    left_out = [launch.resources.exclude] if launch.resources.exclude else []
    return replace(launch, resources=replace(launch.resources, exclude=",".join([*left_out, *nodes])))


class LauncherAtWork(ValueError):
    """Another launcher works on the sweep."""


@contextmanager
def launcher_lock(folder: Path) -> Iterator[None]:
    """One launcher at a time; raises LauncherAtWork if there is another."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        look = typed("jobs/status.py", folder)
        raise LauncherAtWork(f"another launcher is at work on {folder}: see `{look}`") from None
    except OSError as error:
        if error.errno not in NOT_MINE:
            raise
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}): only its owner submits and cancels its trials; give your "
            "own sweep another --name or --runs-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def has_begun(folder: Path, error: BaseException) -> bool:
    """Whether jobs of the sweep may be somewhere although its launcher ended with this error.

    Without a job's id its submission may have been cut off, unless the error says that it was refused.
    """
    noted = load_sweep(folder).all_submissions() if (folder / SWEEP_NAME).exists() else []
    return any(submission.job_id for submission in noted) or bool(noted and not isinstance(error, ValueError))


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
        left = submit_trials(launch, sweep, trials, named)
        for trial in left:
            if trial.id in before:  # or the next try would change it once more
                save_overrides(before[trial.id], trial.folder)
        code = tell_end(launch, sweep, trials, left)
        tell_wandb(launch, sweep)
        return code


def remote_sets(trials: Iterable[Trial]) -> list[str]:
    """The locations that the trials' configs name from which shards are fetched, or read by a command."""
    named = {str(load_config(trial.folder)["config"].get("data", {}).get("shards", "")) for trial in trials}
    return sorted(location for location in named if is_remote(location))


def submit_trials(
    launch: Launch, sweep: Sweep, trials: Sequence[Trial], named: frozenset[str] = frozenset()
) -> list[Trial]:
    """Jobs of one or several trials each; all is noted in submissions.jsonl, the intent too.

    named: shard sets that the user names; the jobs fetch from no other place than those and folders.
    Returns the trials that were not submitted, because Slurm takes no more jobs now, or does not answer.
    """
    size = launch.trials_per_job
    groups = [trials[start : start + size] for start in range(0, len(trials), size)]
    resources, max_parallel = launch.settle(len(groups))
    threads = max(1, resources.cpus_per_task // launch.trials_at_once)

    submitted: list[Submission] = []
    under_way: dict[int, str] = {}  # jobs of this machine: index of the group -> job id
    progress = LocalProgress(trials, max_parallel * launch.trials_at_once)

    def on_job(index: int, job: Any, state: str) -> None:
        group, place = groups[index], f"{index + 1} of {len(groups)}"
        if state == "ended":
            under_way.pop(index)
            progress.ended(group)
            return
        submitted.extend(Submission(t.id, job.job_id, launch.cluster, str(job.paths.stdout)) for t in group)
        if state == "started":
            under_way[index] = job.job_id
            progress.started(group, job.job_id, place)
        else:
            for trial in group:
                logger.info("%s %s: submitted as job %s (%s)", trial.id, trial.label, job.job_id, place)
        if state == "started" or index + 1 == len(groups) or len(submitted) >= NOTED_TOGETHER:
            note()

    def note() -> None:
        sweep.add_submissions(submitted)
        submitted.clear()

    require_own_folder(sweep.folder / "logs")
    snapshot = take_snapshot(sweep.folder / "code")
    stack = ExitStack()
    if launch.cluster != "slurm":
        stack.enter_context(shown(progress, lines=launch.cluster == "local"))
    try:
        jobs = submit(
            TrialTask(sweep.name, resources.processes, threads, launch.trials_at_once, tuple(sorted(named))),
            [[str(trial.folder.absolute()) for trial in group] for group in groups],
            cluster=launch.cluster,
            folder=sweep.folder / "logs",
            resources=resources,
            name=job_name(sweep),
            max_parallel=max_parallel,
            on_job=on_job,
            announce=partial(announce, sweep, groups),
            withdraw=sweep.withdraw_intent,
            variables=snapshot.variables(),
            as_many_as_fit=True,
        )
    except KeyboardInterrupt:
        stack.close()
        stopped = [(trial, job_id) for index, job_id in under_way.items() for trial in groups[index]]
        raise KeyboardInterrupt(_tell_stop(trials, stopped)) from None
    finally:
        stack.close()
        if submitted:  # the first of several arrays, if another did not fit or was refused
            note()
    return [trial for group in groups[len(jobs) :] for trial in group]


def job_name(sweep: Sweep) -> str:
    return f"petseg-{sweep.name}"


def tell_end(launch: Launch, sweep: Sweep, trials: Sequence[Trial], left: Sequence[Trial]) -> int:
    """Say what is left to do of the trials after their submission, and which have failed; returns the exit code."""
    if launch.cluster != "slurm":
        wanted = {trial.id for trial in trials}
        return _tell_failures([row for row in standings(sweep) if row.trial.id in wanted and row.status not in ENDED])
    if not left:
        return OK
    several = "" if launch.trials_per_job > 1 else "; --trials-per-job puts several trials into each job"
    Terminal(soft_wrap=True).print(
        f"{len(left)} of {len(trials)} trials are left as planned: Slurm takes no more of your jobs now, for the "
        f"reason above. The same command again submits them later{several}",
        highlight=False,
    )
    return INTERRUPTED


def tell_wandb(launch: Launch, sweep: Sweep) -> None:
    """Say where wandb shows the sweep, or why it does not, after trials that this process has waited for."""
    if launch.cluster != "slurm":
        for line in wandb_standing(sweep.folder, standings(sweep)).lines():
            Terminal(soft_wrap=True).print(line, markup=False, highlight=False)


def _tell_stop(trials: Sequence[Trial], stopped: Sequence[tuple[Trial, str]]) -> str:
    """Note in the trials whose processes were stopped with the launcher that this is why; returns what to say.

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
    return f"{done} of {len(trials)} trials are done; the same command goes on with the others from what is saved"


def _tell_failures(rows: Sequence[Standing]) -> int:
    for row in rows:
        logger.error("%s %s: %s %s; its log: %s", row.trial.id, row.trial.label, row.status, row.note, row.log)
    return FAILED if rows else OK
