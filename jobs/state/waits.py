"""Why queued jobs will not start, or not soon: what holds them, and what to do about it.

Slurm queues some jobs that it will never start as they are. The reasons are those of squeue (`man squeue`, JOB REASON
CODES), with spaces or underscores, by version. Reasons that are not listed here pass on their own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.state.causes import UNPLACEABLE, WHAT_IS_ASKED
from slurm import patience
from slurm.cluster import JobState

Kind = Literal[
    "failed_launch",  # Slurm holds it because a start failed: it can be released
    "held",  # somebody holds it: it can be released
    "never",  # it cannot start with these requirements: it has to be submitted with others
    "blocked",  # it starts when a limit, the partition or its nodes allow it
]
HELD: tuple[Kind, ...] = ("failed_launch", "held")
HELD_STATES = ("REQUEUE_HOLD", "SPECIAL_EXIT")
IDS_PER_CALL = 100

UNPLACEABLE_REASON = "BadConstraints"
ANEW = "cancel it and run the sweep again"
# the first match counts
REASONS: tuple[tuple[str, Kind, str], ...] = (
    (
        r"failed requeued held|JobHoldMaxRequeue|requeued in held state",
        "failed_launch",
        (
            "a start failed before the trial began, and Slurm holds the job, so that it does not fail again and again: "
            "see `sinfo -R` for the node, then release it"
        ),
    ),
    (r"JobHeldAdmin", "held", "an administrator holds it: ask why before you release it, which may be refused"),
    (r"JobHeldUser", "held", "somebody with your account holds it: release it when it may start"),
    (r"PartitionTimeLimit", "never", f"its partition allows less time: {ANEW} with a lower --timeout-min"),
    (
        r"Partition(NodeLimit|Config)",
        "never",
        f"its partition has other numbers of nodes: {ANEW} with another --nodes",
    ),
    (
        UNPLACEABLE_REASON,
        "never",
        f"{UNPLACEABLE}: {ANEW} with another {WHAT_IS_ASKED}",
    ),
    (
        r"DependencyNeverSatisfied",
        "never",
        f"the job that it waits for failed or was cancelled: fix that first, then {ANEW}",
    ),
    (
        r"AccountNotAllowed|QOSNotAllowed|InvalidAccount|InvalidQOS|AssocNotAllowed",
        "never",
        (
            f"this account or QOS may not run there: {ANEW} with another --account, --qos or --partition "
            "(`sacctmgr show associations user=$USER`)"
        ),
    ),
    (r"Reservation(Deleted|Invalid)", "never", f"its reservation is gone: {ANEW}"),
    (
        r"(Assoc|QOS)\w*WallDuration",
        "never",
        f"a limit of the account or QOS allows less time for a job: {ANEW} with a lower --timeout-min",
    ),
    (
        r"(Assoc|QOS)\w*(Minutes|Mins)",
        "blocked",
        (
            "the account or QOS has used up its hours: it starts when they are renewed; another --account or --qos may "
            "have some left"
        ),
    ),
    (
        r"(Assoc|QOS)(Max|Min)\w*(PerJob|PerNode|NotSatisfied)|QOSMin\w*",
        "never",
        (
            f"a limit of the account or QOS does not allow such a job: {ANEW} with other --gpus, --nodes, "
            "--cpus-per-task or --mem-gb (`sacctmgr show qos`)"
        ),
    ),
    (
        r"(Assoc|QOS)Grp",
        "blocked",
        (
            "its account or QOS holds as much as it may, over all its users: it starts when some of their jobs end, "
            "unless it asks for more than the whole limit (`sacctmgr show associations`, `sacctmgr show qos`)"
        ),
    ),
    (
        r"(Assoc|QOS)Max|(Association|QOS)(Resource|Job)Limit",
        "blocked",
        "your jobs hold as much as you may have at a time: it starts when some of them end",
    ),
    (
        r"Partition(Down|Inactive)",
        "blocked",
        "its partition starts no jobs now: wait, or cancel it and take another --partition",
    ),
    (
        r"ReqNodeNotAvail|NodeDown|Nodes required for job are DOWN",
        "blocked",
        "the nodes that it could run on are down, drained or reserved: see `sinfo -R`",
    ),
    (r"Licenses", "blocked", "it waits for licenses that others hold: see `scontrol show licenses`"),
)


@dataclass(frozen=True)
class Wait:
    """Why a queued job will not start on its own."""

    kind: Kind
    reason: str  # in Slurm's words
    advice: str

    @property
    def is_held(self) -> bool:
        return self.kind in HELD


def wait_of(job: JobState) -> Wait | None:
    """What keeps a queued job from starting; None if it waits as others do."""
    reason = job.reason.replace("_", " ")
    for pattern, kind, advice in REASONS:
        if re.search(pattern, reason):
            return Wait(kind, job.reason, advice)
    if job.state in HELD_STATES:
        _, kind, advice = REASONS[0]
        return Wait(kind, job.reason or job.state, advice)
    return None


def release(job_ids: Sequence[str]) -> None:
    """Release held jobs. Raises OSError with Slurm's complaint, Unavailable where it does not answer now."""
    ids = list(dict.fromkeys(job_ids))
    for start in range(0, len(ids), IDS_PER_CALL):
        try:
            patience.call(["scontrol", "release", ",".join(ids[start : start + IDS_PER_CALL])])
        except FileNotFoundError:
            raise OSError("no scontrol on PATH: go to a login node of the cluster") from None
        except subprocess.CalledProcessError as error:
            raise OSError(f"scontrol release: {patience.one_line(error.stderr or error.stdout)}") from None
