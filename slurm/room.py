"""How many jobs of an array sbatch would take now: sites limit the jobs that a user, or all, may have in the queue.

Limits on a user's jobs (MaxSubmitJobs, GrpSubmitJobs) lie on the user, on the accounts above, on the job's QOS and on
its partition's; one overrides another, some are shared with other users, and what they leave depends on what is queued.
MaxJobCount limits the cluster's jobs: beyond it sbatch itself retries for two minutes, and then says EAGAIN.
`sbatch --test-only` applies all of these as sbatch does, submits nothing, and needs no access to accounting.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from slurm.cluster import CLIENT_TIMEOUT_S
from slurm.environment import sbatch_environment
from slurm.patience import NO_MORE_JOBS

# Slurm's reasons: AssocMaxSubmitJobLimit, AssocGrpSubmitJobsLimit, QOSMaxSubmitJobPerUserLimit, QOSGrpSubmitJobsLimit,
# MaxSubmitJobsPerAccount. Others that violate a policy (a time limit, say) would refuse a single job too.
SUBMIT_LIMIT = re.compile(r"\b\w*SubmitJob\w*\b")


@dataclass(frozen=True)
class Room:
    """How many jobs fit, and if not all do, the limit that excludes the others, in Slurm's words."""

    jobs: int
    limit: str = ""


def limit_in(stderr: str) -> str:
    """The limit on submitted jobs that sbatch complains of; empty if it is another complaint, or none."""
    if NO_MORE_JOBS in stderr:
        return "MaxJobCount of the cluster"
    match = SUBMIT_LIMIT.search(stderr)
    return match[0] if match else ""


def largest_fitting(count: int, fits: Callable[[int], bool]) -> int:
    """The largest n from 0 to `count` for which fits(n), where what fits, fits with fewer too; 0 is not asked.

    One question if all fit, else at most 1 + ceil(log2(count)), by bisection.
    """
    if count == 0 or fits(count):
        return count
    fitting, too_many = 0, count
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting


def find_room(count: int, script: Callable[[int], str]) -> Room:
    """How many of `count` jobs there is room for; script(n) is sbatch's script of n jobs.

    Where sbatch does not answer, or complains of something else, all count as fitting: the submission will show.
    """
    limit = ""

    def fits(jobs: int) -> bool:
        nonlocal limit
        named = limit_in(_complaint(script(jobs)))
        limit = named or limit
        return not named

    jobs = largest_fitting(count, fits)
    return Room(jobs, limit if jobs < count else "")


def _complaint(script: str) -> str:
    """What sbatch has against a script; empty if it has nothing, or does not answer."""
    try:
        done = ask_sbatch(script)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stderr if done.returncode else ""


def ask_sbatch(script: str) -> subprocess.CompletedProcess[str]:
    """What sbatch answers to a script, which is not submitted."""
    return subprocess.run(
        ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S,
        check=False, env=sbatch_environment(os.environ),
    )  # fmt: skip
