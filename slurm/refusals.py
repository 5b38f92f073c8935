"""What helps where sbatch refuses a job, by its own words (slurm_errno.c)."""

from __future__ import annotations

import re

from shards.command import typed
from slurm import cluster
from slurm.resources import Resources

ASSOCIATIONS = "`sacctmgr show associations user=$USER` lists yours"
# the first match counts: the complaint about an account names partitions too
ADVICE: tuple[tuple[str, str], ...] = (
    (r"invalid generic resource", "the nodes there have no such GPUs: --gpus 0 runs on the CPU; {doctor} shows them"),
    (r"invalid account|account/partition", f"give another --account (or --partition): {ASSOCIATIONS}"),
    (r"invalid qos", f"give another --qos: {ASSOCIATIONS}"),
    (r"invalid wckey", "give one of your own by --wckey: `sacctmgr show wckey user=$USER` lists them"),
    (r"time limit", "give a lower --timeout-min: {doctor} shows what the partition allows"),
    (r"invalid feature", "give another --constraint: `sinfo --format='%N %f'` lists what the nodes have"),
    (r"invalid node name", "give another --exclude: `sinfo --Node` lists the nodes"),
    (r"dependency", "give another --dependency: `squeue --me` lists your jobs"),
    (r"node configuration|memory specification|(node|cpu|task) count", "ask for less: {doctor} shows the nodes"),
    (r"accounting/qos policy", "ask for less, or give another --qos: `sacctmgr show qos` lists their limits"),
    (r"partition", "partitions here: {partitions}"),
)  # fmt: skip


def advice_on(stderr: str, resources: Resources) -> str:
    """What to do about sbatch's complaint, in one line; empty if there is nothing to say."""
    for pattern, advice in ADVICE:
        if re.search(pattern, stderr, re.IGNORECASE):
            named = ["--partition", resources.partition] if resources.partition else []
            doctor = f"`{typed('jobs/doctor.py', '--only', 'partition', *named)}`"
            # asked for only where it is shown
            there = ", ".join(cluster.partitions()) or "none" if "{partitions}" in advice else ""
            return advice.replace("{doctor}", doctor).replace("{partitions}", there)
    return ""
