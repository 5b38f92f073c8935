"""Job arrays: what sbatch gets for many items, cut to what the site takes, and handed over."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from shards.command import Unavailable
from slurm import cluster
from slurm.environment import sbatch_environment
from slurm.local import OnJob, require_folder
from slurm.resources import Resources, to_submitit
from slurm.room import Room, find_room, limit_in
from slurm.submission import Refused, new_token, setup_lines, short, submit_array

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """What all arrays of one submission share."""

    folder: Path
    resources: Resources
    name: str
    max_parallel: int
    announce: Callable[[range], str] | None
    variables: Mapping[str, str]
    as_many_as_fit: bool  # rather than to fail where the site's limit on submitted jobs leaves no room for all


def submit_arrays(
    function: Callable[[Any], Any], items: Sequence[Any], request: Request, report: OnJob
) -> list[submitit.Job[Any]]:
    """The jobs of the items, or of the first ones. Raises ValueError if sbatch is missing, or refuses.

    Where Slurm takes no more now, or does not answer, those that it has taken are returned if there is to be room for
    some only; else Unavailable is raised.
    """
    if missing := [command for command in ("sbatch", "srun") if shutil.which(command) is None]:
        raise ValueError(f"no {missing[0]} on PATH: go to a login node of the cluster, or add --cluster local")
    require_folder(request.folder)
    jobs: list[submitit.Job[Any]] = []
    try:
        for size in chunk_sizes(len(items), cluster.max_array_size()):
            throttled = jobs and request.max_parallel < len(items)
            asked = _after(request.resources, jobs[-1]) if throttled else request.resources
            room, submitted = _submit_what_fits(
                function, items[len(jobs) : len(jobs) + size], len(jobs), asked, request
            )
            for job in submitted:
                jobs.append(job)
                report(len(jobs) - 1, job, "submitted")
            if room.limit:
                logger.warning("sbatch takes %d of %d jobs now (%s)", len(jobs), len(items), room.limit)
                break
    except Refused as error:
        raise ValueError(_explain(str(error), len(jobs), len(items))) from error
    except Unavailable as error:
        if not request.as_many_as_fit:
            raise
        logger.warning("%d of %d jobs are submitted: %s", len(jobs), len(items), error)
    return jobs


def _submit_what_fits(
    function: Callable[[Any], Any], items: Sequence[Any], start: int, asked: Resources, request: Request
) -> tuple[Room, list[submitit.Job[Any]]]:
    """One array of the items, or of as many as there is room for; `start` is the first one's place among all items."""
    room = Room(len(items))
    if request.as_many_as_fit:
        room = find_room(len(items), lambda count: _script(count, asked, request))
    if not room.jobs:
        return room, []
    indices = range(start, start + room.jobs)
    try:
        return room, _submit_array(function, items[: room.jobs], indices, asked, request)
    except Refused as error:
        limit = limit_in(str(error))  # filled up since sbatch was asked
        if not (request.as_many_as_fit and limit):
            raise
        return Room(0, limit), []


def render_sbatch(
    *, count: int, folder: Path, resources: Resources, name: str, max_parallel: int, token: str = ""
) -> str:
    """The script that sbatch gets for `count` items, which must fit one array; submits nothing.

    token: of a submission, by which its jobs are found, and find their work
    """
    folder = folder.expanduser().absolute()
    setup = None
    if token:
        resources = dataclasses.replace(resources, comment=" ".join(filter(None, [resources.comment, token])))
        name, setup = f"{name}-{short(token)}", setup_lines(folder, token)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    parameters: dict[str, Any] = to_submitit(resources, name=name, max_parallel=max_parallel)
    map_count = count if count > 1 else None  # submitit makes no array of a single item
    text: str = _make_sbatch_string(command=command, folder=folder, map_count=map_count, setup=setup, **parameters)
    return text


def chunk_sizes(count: int, max_array_size: int) -> list[int]:
    """Sizes of the job arrays for `count` items: Slurm refuses one larger than the site's MaxArraySize."""
    full, rest = divmod(count, max_array_size)
    return [max_array_size] * full + ([rest] if rest else [])


def _script(count: int, asked: Resources, request: Request, token: str = "") -> str:
    return render_sbatch(
        count=count,
        folder=request.folder,
        resources=asked,
        name=request.name,
        max_parallel=request.max_parallel,
        token=token,
    )


def _submit_array(
    function: Callable[[Any], Any], items: Sequence[Any], indices: range, asked: Resources, request: Request
) -> list[submitit.Job[Any]]:
    """One array, or a job of its own for a single item. Raises Refused with sbatch's complaint, and Unavailable."""
    token = request.announce(indices) if request.announce is not None else new_token()
    return submit_array(
        function,
        items,
        folder=request.folder,
        script=_script(len(items), asked, request, token),
        token=token,
        environ=sbatch_environment(os.environ) | dict(request.variables),
        timeout_min=asked.timeout_min,
        num_tasks=asked.processes,
    )


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
    message = f"sbatch refused the job: {cluster.one_line(stderr)}"
    if "partition" in stderr.lower():
        message += f"; partitions here: {', '.join(cluster.partitions()) or 'none'}"
    if "wckey" in stderr.lower():
        message += "; give one of your own by --wckey: `sacctmgr show wckey user=$USER` lists them"
    if "configuration source" in stderr:
        message += "; no Slurm is set up on this machine: go to a login node of the cluster, or add --cluster local"
    if submitted:
        message += f"; {submitted} of {total} jobs were submitted before, and run"
    return message
