"""Where the processes of a job meet: rank 0 takes a free port and tells the others through the job's folder.

submitit draws the port at random in the range from which the kernel serves everybody else, and does not look whether
it is free: two jobs on a node, or a browser, and the job hangs until its time limit.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from petseg.footprint.gpus import gpus_given
from shards.cause import Cause
from shards.files import write_whole

if TYPE_CHECKING:
    import submitit

POLL_S, TIMEOUT_S = 0.2, 300.0


class RanksNotMet(OSError):
    """The processes of a job did not find each other: no trial was trained."""

    cause = Cause.LAUNCH


def set_up_ranks(environment: submitit.JobEnvironment) -> None:
    """Tell torch and accelerate who is who, in a job of several processes; raises RanksNotMet without rank 0."""
    if environment.num_tasks == 1:
        return
    address, port = meet(environment)
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(environment.global_rank),
        WORLD_SIZE=str(environment.num_tasks),
        LOCAL_RANK=str(environment.local_rank),
        LOCAL_WORLD_SIZE=str(environment.num_tasks // environment.num_nodes),
    )
    if not gpus_given(os.environ):
        os.environ["ACCELERATE_USE_CPU"] = "true"


def meet(environment: submitit.JobEnvironment) -> tuple[str, int]:
    """Address and port of rank 0."""
    path = _path(environment)
    if environment.global_rank == 0:
        address_and_port = (environment.hostnames[0], _free_port())
        write_whole(path, json.dumps(address_and_port) + "\n")
        return address_and_port
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            address, port = json.loads(path.read_text())
        except FileNotFoundError:
            time.sleep(POLL_S)
            continue
        return address, port
    raise RanksNotMet(f"rank 0 wrote no {path} within {TIMEOUT_S:.0f} s: see its log")


def remove_rendezvous(environment: submitit.JobEnvironment) -> None:
    """Rank 0 removes the file before it exits: the local controller restarts a job under the same id."""
    if environment.global_rank == 0:
        _path(environment).unlink(missing_ok=True)


def _path(environment: submitit.JobEnvironment) -> Path:
    """The file of this start of the job: none reads the port of an earlier start that was killed."""
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return Path(os.environ["SUBMITIT_FOLDER"]) / f"{environment.job_id}_rendezvous_{restart}.json"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
