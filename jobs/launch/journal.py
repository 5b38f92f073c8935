"""Recovers submissions that a killed launcher could not record, by comparing its intent with Slurm's queue.

Before sbatch is called, a line without job id is written for each trial, with a token that Slurm keeps in the name and
the comment of the jobs. The next launcher, or cancel, that finds such lines asks squeue for the token: the jobs that
carry it belong to these trials, and nothing is submitted twice.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.runs.trial import Submission, Sweep, Trial
from slurm import cluster

logger = logging.getLogger(__name__)


def announce(sweep: Sweep, groups: Sequence[Sequence[Trial]], indices: range) -> str:
    """Record that the jobs of these groups of trials are about to be submitted; returns the token they carry."""
    from slurm.submission import new_token  # submitit, which only a submission needs

    token = new_token()
    numbered = ((position, trial) for position, index in enumerate(indices) for trial in groups[index])
    sweep.add_submissions(Submission(trial.id, "", "slurm", "", token, position) for position, trial in numbered)
    return token


def cut_off_submissions(sweep: Sweep) -> list[Submission]:
    return [s for s in sweep.submissions().values() if s.cluster == "slurm" and not s.job_id]


def reconcile(sweep: Sweep) -> None:
    """Assign the jobs that Slurm has to the trials whose submission was cut off; the others will be submitted again.

    sbatch may still be on its way to Slurm: a token without jobs is revoked, so that its jobs end at once if they come.
    Raises OSError if Slurm cannot be asked, Unavailable if it does not answer now: to submit without asking could run a
    trial twice.
    """
    cut_off = cut_off_submissions(sweep)
    if not cut_off:
        return
    from submitit.core.utils import JobPaths

    from slurm.submission import restore, revoke, work_file

    logs = sweep.folder.absolute() / "logs"
    tokens = sorted({submission.intent for submission in cut_off})
    jobs = cluster.jobs_by_token(tokens)
    if missing := sorted(set(tokens) - {token for token, _ in jobs}):
        for token in missing:
            revoke(logs, token)
        came = cluster.jobs_by_token(missing)  # between the question and the revocation
        for token in {token for token, _ in came}:
            restore(logs, token)
        jobs |= came
    orphans, adopted = [], []
    for submission in cut_off:
        job_id = jobs.get((submission.intent, submission.place))
        if job_id is None:
            continue
        paths = JobPaths(logs, job_id, 0)
        work = work_file(logs, submission.intent, submission.place)
        if not work.exists() and not Path(paths.submitted_pickle).exists():
            orphans.append(job_id)
            continue
        adopted.append(replace(submission, job_id=job_id, log=str(paths.stdout)))
        logger.info("%s was submitted as job %s before its launcher ended", submission.trial, job_id)
    sweep.add_submissions(adopted)
    if orphans:
        logger.info("jobs %s have nothing to run, because their launcher was killed: cancelled", ", ".join(orphans))
        subprocess.run(["scancel", *orphans], capture_output=True, timeout=60, check=False)
