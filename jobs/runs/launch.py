"""How a sweep is launched: launch.json keeps the settings of the last submission."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from jobs.runs.trial import LAUNCH_NAME
from shards.files import build, read_json_object, write_whole
from slurm.gpus import visible_gpus
from slurm.resources import Resources

Cluster = Literal["slurm", "local", "debug"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How trials are submitted; launch.json keeps the last one for `jobs/retry.py`."""

    cluster: Cluster
    resources: Resources
    max_parallel: int
    trials_per_job: int
    trials_at_once: int = 1  # of one job

    def __post_init__(self) -> None:
        require_shareable(self.cluster, self.resources, self.trials_per_job, self.trials_at_once)

    def settle(self, num_jobs: int, live_jobs: Sequence[str] = ()) -> tuple[Resources, int]:
        """The resources and the limit of parallel jobs that hold for this cluster.

        live_jobs: Slurm's, of earlier submissions. Slurm limits each array on its own, so where they and the new jobs
        together are more than the limit, the new ones wait until the arrays of those have ended.
        """
        resources, max_parallel = self.resources, self.max_parallel
        if self.cluster == "slurm":
            if live_jobs and 0 < max_parallel < len(live_jobs) + num_jobs:
                resources = resources.after(live_jobs)
            return resources, max_parallel or num_jobs
        gpus = visible_gpus()
        if not gpus and resources.gpus_per_node:
            logger.info("no GPU on this machine: the trials run on the CPU")
            resources = replace(resources, gpus_per_node=0)
        max_parallel = max_parallel or max(1, len(gpus) // max(1, resources.gpus_per_node))
        cores = len(os.sched_getaffinity(0))  # two OpenMP threads on one core would only wait for each other
        threads = max(1, cores // (max_parallel * resources.processes_per_node))
        return replace(resources, cpus_per_task=threads), max_parallel


def require_shareable(cluster: Cluster, resources: Resources, trials_per_job: int, trials_at_once: int) -> None:
    """Raises ValueError if trials cannot train side by side in jobs like these."""
    if trials_at_once == 1:
        return
    if trials_at_once > trials_per_job:
        raise ValueError(
            f"--trials-at-once {trials_at_once}: a job has no more than --trials-per-job {trials_per_job}; raise "
            "that too"
        )
    if cluster == "debug":
        raise ValueError("--trials-at-once: --cluster debug runs trials in one process; take --cluster local")
    if resources.processes > 1:
        raise ValueError(
            f"--trials-at-once {trials_at_once}: the trials share a job of one process, and this one has "
            f"{resources.processes}; take --gpus 1 (or 0) and --nodes 1"
        )


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
