"""Submits work: one verb, `submit`, for Slurm, for processes of this machine, and for this process itself.

A thin layer on submitit, which carries a function and its argument to the job by pickle, and the result back.
Whoever can write to the job folder can therefore run code as you: keep it yours (it is created without write
permission for others), and read results from the files that the job wrote rather than from the pickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import DelayedSubmission

from slurm.arrays import submit_arrays
from slurm.environment import environment
from slurm.local import OnJob, require_folder, run_local
from slurm.request import Request

Cluster = Literal["slurm", "local", "debug"]


def submit(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    cluster: Cluster,
    request: Request,
    on_job: OnJob | None = None,
) -> list[submitit.Job[Any]]:
    """Run `function(item)` for every item, and return the jobs in the items' order.

    slurm: job arrays are submitted, and this returns. local: processes of this machine; this returns when all
    have ended. debug: in this process, one after the other, without the request's variables; an exception propagates
    at once.
    `on_job(index, job, state)` is called with state `submitted` (slurm), or `started` and `ended`.
    Raises ValueError if the cluster refuses.
    """
    if not items:
        return []
    report: OnJob = on_job or (lambda index, job, state: None)
    if cluster == "slurm":
        return submit_arrays(function, items, request, report)
    if cluster == "local":
        return run_local(function, items, request, report)
    if cluster == "debug":
        return _run_here(function, items, request.folder, report)
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
