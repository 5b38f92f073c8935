"""Writes to the cluster: one verb, `submit`, for Slurm, for processes of this machine, and for this very process.

A thin layer on submitit, which carries a function and its argument to the job by pickle, and the result back.
Whoever can write to the job folder can therefore run code as you: keep it yours (it is created without write
permission for others), and read results from the files that the job wrote rather than from the pickles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from slurm import cluster as slurm_cluster
from slurm.local import MAX_REQUEUES, OnJob, require_folder, run_local
from slurm.resources import Resources, to_submitit

Cluster = Literal["slurm", "local", "debug"]

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
NOT_SECRET_NAME = re.compile(r"^TOKENIZERS_|_(FILE|PATH|DIR)$")  # a setting, or where a secret lies, not the secret
# Left over when a job submits a job; they would contradict what the new one asks for.
INHERITED_NAME = re.compile(r"^(SLURM|SLURMD|SRUN|SUBMITIT|TORCHELASTIC)_")
KEPT_NAMES = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SUBMITIT_PREEMPT_SIGNAL"})
DISTRIBUTED_NAMES = frozenset({"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})


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
    variables: Mapping[str, str] | None = None,
) -> list[submitit.Job[Any]]:
    """Run `function(item)` for every item, at most `max_parallel` at a time; returns the jobs in the items' order.

    slurm: job arrays are submitted, and this returns. local: processes of this machine; this returns when all
    have ended. debug: in this process, one after the other; an exception travels on at once.
    `on_job(index, job, state)` is called with state `submitted` (slurm), or `started` and `ended`.
    `announce(indices)` is called before each array is handed to sbatch, and gives the comment that Slurm keeps with it,
    by which the jobs can be found if this process is killed before it learns their ids.
    `variables` are added to the environment of the jobs (not to debug's).
    `folder` takes logs and pickles and must be seen by every node. Raises ValueError if the cluster refuses.
    """
    if max_parallel < 1:
        raise ValueError(f"max_parallel={max_parallel}: must be at least 1")
    if not items:
        return []
    report: OnJob = on_job or (lambda index, job, state: None)
    if cluster == "slurm":
        sbatch = _Sbatch(folder, resources, name, max_parallel, announce, dict(variables or {}))
        return _submit_slurm(function, items, sbatch, report)
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


def render_sbatch(*, count: int, folder: Path, resources: Resources, name: str, max_parallel: int) -> str:
    """The script that `submit` hands to sbatch for `count` items, which must fit one array; submits nothing."""
    folder = folder.expanduser().absolute()
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    parameters: dict[str, Any] = to_submitit(resources, name=name, max_parallel=max_parallel)
    map_count = count if count > 1 else None  # submitit makes no array of a single item
    text: str = _make_sbatch_string(command=command, folder=folder, map_count=map_count, **parameters)
    return text


def chunk_sizes(count: int, max_array_size: int) -> list[int]:
    """Sizes of the job arrays for `count` items: Slurm refuses one larger than the site's MaxArraySize."""
    full, rest = divmod(count, max_array_size)
    return [max_array_size] * full + ([rest] if rest else [])


def sbatch_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment to call sbatch in: without secrets, and without what a surrounding job left in it.

    sbatch copies its whole environment into the job, slurmctld keeps it on disk, and some sites store it in
    the accounting database. `--export=NAMES` is no way out: srun inside the job obeys it too, and with a list of
    names sbatch loads the user's login environment on the node. There the wandb client reads ~/.netrc.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in KEPT_NAMES or not (_is_secret(name) or INHERITED_NAME.match(name) or name in DISTRIBUTED_NAMES)
    }


def _is_secret(name: str) -> bool:
    return bool(SECRET_NAME.search(name)) and not NOT_SECRET_NAME.search(name)


@dataclasses.dataclass(frozen=True)
class _Sbatch:
    """What all arrays of one call of `submit` share."""

    folder: Path
    resources: Resources
    name: str
    max_parallel: int
    announce: Callable[[range], str] | None
    variables: dict[str, str]


def _submit_slurm(
    function: Callable[[Any], Any], items: Sequence[Any], sbatch: _Sbatch, report: OnJob
) -> list[submitit.Job[Any]]:
    if missing := [command for command in ("sbatch", "srun") if shutil.which(command) is None]:
        raise ValueError(f"no {missing[0]} on PATH: go to a login node of the cluster, or add --cluster local")
    require_folder(sbatch.folder)
    jobs: list[submitit.Job[Any]] = []
    for size in chunk_sizes(len(items), slurm_cluster.max_array_size()):
        indices = range(len(jobs), len(jobs) + size)
        throttled = jobs and sbatch.max_parallel < len(items)
        asked = _after(sbatch.resources, jobs[-1]) if throttled else sbatch.resources
        if sbatch.announce is not None:
            comment = " ".join(filter(None, [asked.comment, sbatch.announce(indices)]))
            asked = dataclasses.replace(asked, comment=comment)
        executor = submitit.SlurmExecutor(sbatch.folder, max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(**to_submitit(asked, name=sbatch.name, max_parallel=sbatch.max_parallel))
        # submitit calls sbatch in our environment, and prints its complaint before it raises it
        wanted = sbatch_environment(os.environ) | sbatch.variables
        with _environment(wanted), contextlib.redirect_stderr(io.StringIO()):
            try:
                submitted = executor.map_array(function, [items[index] for index in indices])
            except FailedJobError as error:
                raise ValueError(_explain(str(error), len(jobs), len(items))) from error
        for job in submitted:
            jobs.append(job)
            report(len(jobs) - 1, job, "submitted")
    return jobs


def _after(resources: Resources, job: submitit.Job[Any]) -> Resources:
    """The same resources, asked for when the job's whole array has ended.

    Arrays are throttled one by one: side by side, two of them would run twice `max_parallel` jobs.
    """
    previous = f"afterany:{job.job_id.partition('_')[0]}"
    if resources.dependency and "?" in resources.dependency:
        raise ValueError(
            f"dependency={resources.dependency!r}: its ? cannot be joined with the wait for the first array; "
            "submit fewer jobs, or raise max_parallel to their number"
        )
    joined = f"{resources.dependency},{previous}" if resources.dependency else previous
    return dataclasses.replace(resources, dependency=joined)


def _explain(stderr: str, submitted: int, total: int) -> str:
    """sbatch's own message in one line, with what helps to mend it."""
    message = f"sbatch refused the job: {slurm_cluster.one_line(stderr)}"
    if "partition" in stderr.lower():
        message += f"; partitions here: {', '.join(slurm_cluster.partitions()) or 'none'}"
    if submitted:
        message += f"; {submitted} of {total} jobs were submitted before, and run"
    return message


def _run_here(
    function: Callable[[Any], Any], items: Sequence[Any], folder: Path, report: OnJob
) -> list[submitit.Job[Any]]:
    require_folder(folder)
    jobs: list[submitit.Job[Any]] = []
    for index, item in enumerate(items):
        job: submitit.Job[Any] = submitit.DebugJob(folder, DelayedSubmission(function, item))
        here = {"SUBMITIT_DEBUG_JOB_ID": job.job_id, "SUBMITIT_FOLDER": str(folder)}
        report(index, job, "started")
        with _environment({**os.environ, **here}):
            # not through job.result(), which opens a debugger when the function raises
            job.submission().result()
        report(index, job, "ended")
        jobs.append(job)
    return jobs


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """os.environ as wanted inside the block, changed only where it differs: other threads may read it."""
    before = dict(os.environ)
    _change_environment(before, wanted)
    try:
        yield
    finally:
        _change_environment(dict(os.environ), before)


def _change_environment(now: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in now.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in wanted.items() if now.get(name) != value})
