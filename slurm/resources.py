"""What a job asks of the cluster. Never part of a run's identity: a run is the same wherever it ran."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

MB_PER_GB = 1024  # Slurm's GB
LONGEST_MIN = 366 * 24 * 60  # a much longer time overflows in Slurm, and is no limit
LONGEST_SIGNAL_DELAY_S = 65535  # sbatch's


@dataclass(frozen=True)
class Resources:
    """What each job asks for."""

    partition: str | None = None
    """Slurm partition; the cluster's default if not given."""
    nodes: int = 1
    """Nodes of one job."""
    gpus_per_node: Annotated[int, tyro.conf.arg(name="gpus")] = 1
    """GPUs on each node, one process for each; 0 runs on the CPU."""
    tasks_per_node: int | None = None
    """Processes on each node; one for each GPU, at least one, if not given (set it for DDP on CPUs)."""
    cpus_per_task: int = 8
    """CPU cores of each process: its own and its loading workers'."""
    mem_gb: float = 32.0
    """Memory of each node, in GB."""
    timeout_min: int = 240
    """Time limit of one attempt, in minutes; an interrupted job saves, and the next attempt resumes."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which the job is told to save (Slurm may be up to 60 s early)."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    wckey: str | None = None
    """Workload characterization key that the job is accounted under, at sites that use them."""
    constraint: str | None = None
    """Features that the nodes must have, such as `a100`."""
    exclude: str | None = None
    """Nodes not to use, such as `node[3-4]`."""
    nice: int = 0
    """Lowers the job's priority by this much."""
    dependency: str | None = None
    """Jobs to wait for, such as `afterok:123`."""
    comment: str | None = None
    """Kept with the job, for people and for accounting."""
    requeue: bool = True
    """Let Slurm start the job again after a node's death, a preemption or its time limit. Where the site refuses that,
    run the sweep again instead: it resumes from the saved state."""

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task", "timeout_min"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.timeout_min <= LONGEST_MIN, "timeout_min", self.timeout_min, f"at most {LONGEST_MIN}, a year")
        _require(self.gpus_per_node >= 0, "gpus", self.gpus_per_node, "0 (no GPU) or more")
        # sbatch takes 0, and so what is rounded to it, for all the memory of the node
        enough = math.isfinite(self.mem_gb) and self.mem_gb * MB_PER_GB >= 1
        _require(enough, "mem_gb", self.mem_gb, "at least 0.001, one MB")
        _require(self.nice >= 0, "nice", self.nice, "0 or more (only administrators raise a priority)")
        if self.tasks_per_node is not None:
            _require(self.tasks_per_node >= 1, "tasks_per_node", self.tasks_per_node, "at least 1")
            if self.gpus_per_node and self.tasks_per_node > self.gpus_per_node:
                raise ValueError(
                    f"tasks_per_node={self.tasks_per_node} with gpus={self.gpus_per_node}: two would share "
                    "a GPU; leave tasks_per_node out, or set gpus to 0 for a CPU run"
                )
        limit_s = self.timeout_min * 60
        _require(
            0 <= self.signal_delay_s < limit_s,
            "signal_delay_s",
            self.signal_delay_s,
            f"from 0 to less than the time limit ({limit_s} s)",
        )
        _require(
            self.signal_delay_s <= LONGEST_SIGNAL_DELAY_S,
            "signal_delay_s",
            self.signal_delay_s,
            f"at most {LONGEST_SIGNAL_DELAY_S}",
        )
        for name in ("partition", "account", "qos", "wckey", "constraint", "exclude", "dependency", "comment"):
            value = getattr(self, name)
            # to sbatch an empty value means another thing, and a line break starts a new line of the script
            _require(value is None or (value.strip() and "\n" not in value), name, value, "one non-empty line")

    @property
    def processes_per_node(self) -> int:
        return self.tasks_per_node if self.tasks_per_node is not None else max(1, self.gpus_per_node)

    @property
    def processes(self) -> int:
        """The world size of one job."""
        return self.nodes * self.processes_per_node

    def after(self, job_ids: Iterable[str]) -> Resources:
        """These resources for jobs that wait until the given jobs have ended, and the whole arrays of array tasks.

        Raises ValueError where the jobs are to start after any of several dependencies.
        """
        if self.dependency and "?" in self.dependency:
            raise ValueError(
                f"dependency={self.dependency!r}: its ? cannot be joined with the wait that --max-parallel needs; "
                "submit fewer jobs, or raise --max-parallel"
            )
        arrays = dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids)
        return replace(self, dependency=",".join(filter(None, [self.dependency, ":".join(["afterany", *arrays])])))


def to_submitit(resources: Resources, *, name: str, max_parallel: int) -> dict[str, object]:
    """The parameters of submitit's SlurmExecutor, by its own names (those of sbatch).

    Unset fields are left out, except where submitit has a default of its own.
    """
    # given in either case: otherwise the site's JobRequeue decides, and a node's death might lose the job
    additional: dict[str, object] = {"requeue" if resources.requeue else "no-requeue": True}
    if resources.dependency:
        additional["kill-on-invalid-dep"] = "yes"  # or a job behind a failed `afterok` waits for ever
    if resources.nice:
        additional["nice"] = resources.nice
    wanted: dict[str, object] = {
        "job_name": name,
        "partition": resources.partition,
        "time": resources.timeout_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "gpus_per_node": resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "mem": render_mem(resources.mem_gb),
        "signal_delay_s": resources.signal_delay_s,
        "account": resources.account,
        "qos": resources.qos,
        "wckey": resources.wckey,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "dependency": resources.dependency,
        "comment": resources.comment,
        "array_parallelism": max_parallel,
        "stderr_to_stdout": True,
        "additional_parameters": additional,
        # From Slurm 22.05 srun no longer takes --cpus-per-task from sbatch: each process would get one core.
        # Without --kill-on-bad-exit the ranks beside a dead one wait in a collective until the time limit.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", "--kill-on-bad-exit=1"],
    }
    # unset, submitit would write --wckey=submitit, which sites that enforce wckeys refuse
    return {key: value for key, value in wanted.items() if value is not None or key == "wckey"}


def render_mem(mem_gb: float) -> str:
    """sbatch takes whole numbers only: 1.5 -> 1536MB."""
    return f"{int(mem_gb)}GB" if mem_gb == int(mem_gb) else f"{int(mem_gb * MB_PER_GB)}MB"


def _require(condition: object, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r}: must be {allowed}")
