"""Advice for sbatch's refusals, found by its own messages (slurm_errno.c)."""

from __future__ import annotations

import re

from shards.command import typed
from slurm import cluster
from slurm.resources import Resources

ASSOCIATIONS = "`sacctmgr show associations user=$USER` lists yours"
# the first match counts: the complaint about an account names partitions too
ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"configuration source",
        "no Slurm is set up on this machine: go to a login node of the cluster, or add --cluster local",
    ),
    (r"invalid generic resource", "no node there has such GPUs: --gpus 0 runs on the CPU; {doctor}"),
    (r"invalid account|account/partition", f"give another --account (or --partition): {ASSOCIATIONS}"),
    (r"invalid qos", f"give another --qos: {ASSOCIATIONS}"),
    (r"invalid wckey", "give one of your own by --wckey: `sacctmgr show wckey user=$USER` lists them"),
    (r"accounting/qos policy", "ask for less, or give another --qos: `sacctmgr show qos` lists their limits"),
    (r"time limit", "give a lower --timeout-min; {doctor}"),
    (r"invalid feature", "give another --constraint: `sinfo --format='%N %f'` lists what the nodes have"),
    (r"invalid node name", "give another --exclude: `sinfo --Node` lists the nodes"),
    (r"dependency", "give another --dependency: `squeue --me` lists your jobs"),
    (r"node configuration|memory specification|(node|cpu|task) count", "ask for less{no_gpu}; {doctor}"),
    (r"partition", "partitions here: {partitions}"),
)  # fmt: skip


def advice_on(stderr: str, resources: Resources) -> str:
    """What to do about sbatch's complaint, in one line; empty if there is nothing to say."""
    advice = next((advice for pattern, advice in ADVICE if re.search(pattern, stderr, re.IGNORECASE)), "")
    named = ["--partition", resources.partition] if resources.partition else []
    doctor = typed("jobs/doctor.py", "--only", "partition", *named)
    return advice.format(
        doctor=f"`{doctor}`, with the same flags, compares them with what the nodes have" if advice else "",
        no_gpu=" (--gpus 0 runs on the CPU)" if resources.gpus_per_node else "",
        partitions=(", ".join(cluster.partitions()) or "none") if "{partitions}" in advice else "",
    )
