"""Writes to the cluster: one verb, `submit`, for Slurm, for processes of this machine, and for this very process.

A thin layer on submitit, which carries a function and its argument to the job by pickle, and the result back.
Whoever can write to the job folder can therefore run code as you: keep it yours (it is created without write
permission for others), and read results from the files that the job wrote rather than from the pickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import DelayedSubmission

from slurm.arrays import Request, render_sbatch, render_scripts, submit_arrays
from slurm.environment import DISTRIBUTED_NAMES, environment, sbatch_environment
from slurm.local import OnJob, require_folder, run_local
from slurm.resources import Resources

__all__ = [
    "DISTRIBUTED_NAMES",
    "render_sbatch",
    "render_scripts",
    "sbatch_environment",
    "submit",
]  # where callers look for them

Cluster = Literal["slurm", "local", "debug"]


def submit(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    cluster: Cluster,
    folder: Path,
    resources: Resources,
    name: str,
    max_parallel: int,
    on_job: OnJob | None = None,
    announce: Callable[[range], str] | None = None,
    withdraw: Callable[[str], None] | None = None,
    variables: Mapping[str, str] | None = None,
    as_many_as_fit: bool = False,
) -> list[submitit.Job[Any]]:
    """Run `function(item)` for every item, at most `max_parallel` at a time; returns the jobs in the items' order.

    slurm: job arrays are submitted, and this returns. local: processes of this machine; this returns when all
    have ended. debug: in this process, one after the other; an exception travels on at once.
    `on_job(index, job, state)` is called with state `submitted` (slurm), or `started` and `ended`.
    `announce(indices)` is called before each array is handed to sbatch, and gives the comment that Slurm keeps with it,
    by which the jobs can be found if this process is killed before it learns their ids. `withdraw(comment)` is called
    if sbatch refuses that array: then no job has it.
    `variables` are added to the environment of the jobs (not to debug's).
    `as_many_as_fit`: where the site's limit on submitted jobs leaves no room for all, submit the first ones and return
    their jobs, which may be none, instead of raising.
    `folder` takes logs and pickles and must be seen by every node. Raises ValueError if the cluster refuses.
    """
    if max_parallel < 1:
        raise ValueError(f"max_parallel={max_parallel}: must be at least 1")
    if not items:
        return []
    report: OnJob = on_job or (lambda index, job, state: None)
    if cluster == "slurm":
        request = Request(folder, resources, name, max_parallel, announce, withdraw, variables or {}, as_many_as_fit)
        return submit_arrays(function, items, request, report)
    if cluster == "local":
        return run_local(
            function,
            items,
            folder=folder,
            resources=resources,
            max_parallel=max_parallel,
            on_job=report,
            variables=variables,
        )
    if cluster == "debug":
        return _run_here(function, items, folder, report)
    raise ValueError(f"cluster={cluster!r}: must be slurm, local or debug")


def _run_here(
    function: Callable[[Any], Any], items: Sequence[Any], folder: Path, report: OnJob
) -> list[submitit.Job[Any]]:
    require_folder(folder)
    jobs: list[submitit.Job[Any]] = []
    for index, item in enumerate(items):
        job: submitit.Job[Any] = submitit.DebugJob(folder, DelayedSubmission(function, item))
        here = {"SUBMITIT_DEBUG_JOB_ID": job.job_id, "SUBMITIT_FOLDER": str(folder)}
        report(index, job, "started")
        with environment({**os.environ, **here}):
            # not through job.result(), which opens a debugger when the function raises
            job.submission().result()
        report(index, job, "ended")
        jobs.append(job)
    return jobs
