"""The GPUs that this process was given, compared with those that torch sees.

Training on the CPU instead would be a hundred times slower, in the name of a job that holds GPUs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from shards.cause import Cause
from shards.command import Failure

VISIBLE_NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
NO_DEVICES = ("", "-1", "NoDevFiles")  # the last one is Slurm's
INDEX_NAMES, COUNT_NAME = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"), "SLURM_GPUS_ON_NODE"  # where none of these is set
ON_PURPOSE = "ACCELERATE_USE_CPU"  # accelerate's own word for a run on the CPU


class NodeFault(Failure):
    """This node lacks what it was to give. Another one may well have it: the run itself is sound."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Cause.NODE_FAILURE)


def gpus_given(environ: Mapping[str, str]) -> int:
    """How many GPUs this process was given, at least; 0 = none, or a run on the CPU is wanted."""
    if environ.get(ON_PURPOSE, "").lower() in ("1", "true", "yes", "y", "on"):
        return 0
    named = [environ[name] for name in VISIBLE_NAMES if name in environ]
    if named:
        words = [word.strip() for word in named[0].split(",") if word.strip() not in NO_DEVICES]
        return min(len(words), 1) if any(word.startswith("MIG-") for word in words) else len(words)
    by_index = any(environ.get(name, "") not in NO_DEVICES for name in INDEX_NAMES)
    return int(by_index or environ.get(COUNT_NAME, "0") not in ("", "0"))


def require_gpus(environ: Mapping[str, str] | None = None) -> None:
    """Raises NodeFault, with node and job, if torch sees no GPU where some were given, or none for this local rank.

    Raises ValueError if torch is built for CPUs only: it sees none on any node.
    """
    environ = os.environ if environ is None else environ
    given = gpus_given(environ)
    if not given:
        return
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rank = int(environ.get("LOCAL_RANK", "0"))
    if seen > rank:
        return
    here = place(environ)
    if torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(
            f"{here} has {_count(given)}, and torch {torch.__version__} is built for CPUs only: install one that is "
            f"built for GPUs, or set {ON_PURPOSE}=true to train on the CPU"
        )
    shown = f"torch sees {seen}, none for local rank {rank}" if seen else "torch sees none"
    raise NodeFault(
        f"{here} was given {_count(given)}, and {shown}: see what `nvidia-smi` says there, and leave the node out "
        f"until it is mended (--exclude), or set {ON_PURPOSE}=true to train on the CPU"
    )


def node_name(environ: Mapping[str, str]) -> str:
    """Slurm's name of this node, or the host's own."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def place(environ: Mapping[str, str]) -> str:
    """`job 12_3 on node1`, or the host's name outside of Slurm."""
    if "SLURM_ARRAY_TASK_ID" in environ:
        return f"job {environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']} on {node_name(environ)}"
    if "SLURM_JOB_ID" in environ:
        return f"job {environ['SLURM_JOB_ID']} on {node_name(environ)}"
    return f"this process on {node_name(environ)}"


def _count(gpus: int) -> str:
    return f"{gpus} GPU{'s' if gpus > 1 else ''}"
