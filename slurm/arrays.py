"""Submits job arrays: renders the scripts of many items, in arrays as large as the site allows."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from shards.command import Unavailable
from slurm import cluster, patience
from slurm.chunks import Chunk, plan_chunks, throttle_of_last
from slurm.local import OnJob, require_folder
from slurm.refusals import advice_on
from slurm.request import Request
from slurm.resources import Resources, to_submitit
from slurm.room import Room, find_room, limit_in
from slurm.submission import TOKEN_PREFIX, Refused, last_lines, new_token, setup_lines, short, submit_array

logger = logging.getLogger(__name__)


def submit_arrays(
    function: Callable[[Any], Any], items: Sequence[Any], request: Request, report: OnJob
) -> list[submitit.Job[Any]]:
    """Submit a job for each item; returns the jobs. Raises ValueError if sbatch is missing, or refuses.

    If Slurm accepts no more jobs now, or does not answer, this returns those that it has accepted where the request is
    for as many as fit; else it raises Unavailable.
    """
    if missing := [command for command in ("sbatch", "srun") if shutil.which(command) is None]:
        raise ValueError(f"no {missing[0]} on PATH: go to a login node of the cluster, or add --cluster local")
    require_folder(request.folder)
    jobs: list[submitit.Job[Any]] = []
    try:
        planned = plan_chunks(len(items), cluster.max_array_size(), request.max_parallel)
        for index, chunk in enumerate(planned):
            before = None if chunk.after is None else jobs[planned[chunk.after].indices.start].job_id
            resources = request.resources.after([before]) if before else request.resources
            array = dataclasses.replace(request, resources=resources, max_parallel=chunk.throttle)
            room, submitted = _submit_what_fits(function, items, chunk.indices, array)
            for job in submitted:
                jobs.append(job)
                report(len(jobs) - 1, job, "submitted")
            if room.limit:
                logger.warning("sbatch takes %d of %d jobs now (%s)", len(jobs), len(items), room.limit)
                _raise_throttle(jobs, planned[: index + bool(submitted)], request.max_parallel)
                break
    except Refused as error:
        raise ValueError(_explain(str(error), len(jobs), len(items), request.resources)) from error
    except Unavailable as error:
        if not request.as_many_as_fit:
            raise
        logger.warning("%d of %d jobs are submitted: %s", len(jobs), len(items), error)
    return jobs


def _submit_what_fits(
    function: Callable[[Any], Any], items: Sequence[Any], indices: range, array: Request
) -> tuple[Room, list[submitit.Job[Any]]]:
    """Submit the array of the items at these indices, or of as many of them as there is room for."""
    room = Room(len(indices))
    if array.as_many_as_fit:
        room = find_room(room.jobs, lambda count: render_sbatch(count, array))
    if not room.jobs:
        return room, []
    try:
        return room, _submit_array(function, items, indices[: room.jobs], array)
    except Refused as error:
        limit = limit_in(str(error))  # filled up since sbatch was asked
        if not (array.as_many_as_fit and limit):
            raise
        return Room(0, limit), []


def _raise_throttle(jobs: Sequence[submitit.Job[Any]], submitted: Sequence[Chunk], max_parallel: int) -> None:
    """Add to the last array's share of the limit the shares of arrays that Slurm has no room for now."""
    if not submitted:
        return
    throttle = throttle_of_last(submitted, len(submitted) - 1, max_parallel)
    if throttle <= submitted[-1].throttle:
        return
    array = jobs[-1].job_id.partition("_")[0]
    command = ["scontrol", "update", f"JobId={array}", f"ArrayTaskThrottle={throttle}"]
    try:
        patience.call(command, cluster.LOOK_S)
    except (OSError, subprocess.SubprocessError) as error:
        complaint = patience.one_line(getattr(error, "stderr", "") or str(error))
        logger.warning("fewer jobs than --max-parallel may run at a time: scontrol: %s", complaint)


def render_scripts(count: int, request: Request, patience_s: float | None = None) -> list[str]:
    """The scripts that sbatch gets for `count` items, one for each array; submits nothing.

    Placeholders stand for what only submission knows: TOKEN, and ARRAY1 for the id that the first array will have.
    Raises Unavailable if Slurm does not say, within `patience_s`, how large an array may be.
    """
    scripts = []
    for chunk in plan_chunks(count, cluster.max_array_size(patience_s), request.max_parallel):
        resources = request.resources
        if chunk.after is not None:
            resources = resources.after([f"ARRAY{chunk.after + 1}"])
        array = dataclasses.replace(request, resources=resources, max_parallel=chunk.throttle)
        scripts.append(render_sbatch(len(chunk.indices), array, f"{TOKEN_PREFIX}TOKEN"))
    return scripts


def render_sbatch(count: int, request: Request, token: str = "") -> str:
    """The script that sbatch gets for `count` items, which must fit one array; submits nothing.

    token: identifies a submission; its jobs are found by it, and find their work by it
    """
    folder, resources, name = request.folder.expanduser().absolute(), request.resources, request.name
    setup = None
    if token:
        resources = dataclasses.replace(resources, comment=" ".join(filter(None, [resources.comment, token])))
        name, setup = f"{name}-{short(token)}", setup_lines(folder, token)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    parameters: dict[str, Any] = to_submitit(resources, name=name, max_parallel=request.max_parallel)
    map_count = count if count > 1 else None  # submitit makes no array of a single item
    text: str = _make_sbatch_string(command=command, folder=folder, map_count=map_count, setup=setup, **parameters)
    return "\n".join([text.rstrip("\n"), *last_lines(), ""])


def _submit_array(
    function: Callable[[Any], Any], items: Sequence[Any], indices: range, array: Request
) -> list[submitit.Job[Any]]:
    """Submit one array, or a single job for one item. Raises Refused with sbatch's complaint, and Unavailable."""
    token = array.announce(indices) if array.announce is not None else new_token()
    script = render_sbatch(len(indices), array, token)
    try:
        return submit_array(function, items[indices.start : indices.stop], array, script, token)
    except Refused:
        if array.withdraw is not None:
            array.withdraw(token)
        raise


def _explain(stderr: str, submitted: int, total: int, resources: Resources) -> str:
    """sbatch's own message in one line, with advice."""
    message = f"sbatch refused the job: {patience.one_line(stderr)}"
    if advice := advice_on(stderr, resources):
        message += f"; {advice}"
    if submitted:
        message += f"; {submitted} of {total} jobs were submitted before, and run"
    return message
