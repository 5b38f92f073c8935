"""Submissions that a killed launcher could not write down: what was intended, compared with what Slurm has.

Before sbatch is called, a line without job id is written for each trial, with a token that Slurm keeps as the comment.
A launcher that finds such lines asks squeue for the token: those jobs are the trials', and nothing is submitted twice.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from submitit.core.utils import JobPaths

from jobs.trial import Submission, Sweep, Trial
from slurm import cluster
from slurm.submission import new_token

logger = logging.getLogger(__name__)


def announce(sweep: Sweep, groups: Sequence[Sequence[Trial]], indices: range) -> str:
    """Write down that the jobs of these groups of trials are about to be submitted; returns the comment they carry."""
    token = new_token()
    places = ((place, trial) for place, index in enumerate(indices) for trial in groups[index])
    sweep.add_submissions(Submission(trial.id, "", "slurm", "", token, place) for place, trial in places)
    return token


def reconcile(sweep: Sweep) -> None:
    """Give the jobs that Slurm has to the trials whose submission was cut off; the others stay to be submitted.

    Raises OSError if Slurm cannot be asked, Unavailable if it does not answer now: to submit without asking could run a
    trial twice.
    """
    cut_off = [s for s in sweep.submissions().values() if s.cluster == "slurm" and not s.job_id]
    if not cut_off:
        return
    found = cluster.jobs_by_comment(sorted({submission.intent for submission in cut_off}))
    orphans, submitted = [], []
    for submission in cut_off:
        job_id = found.get((submission.intent, submission.place))
        if job_id is None:
            continue
        paths = JobPaths(sweep.folder.absolute() / "logs", job_id, 0)
        if not Path(paths.submitted_pickle).exists():  # killed between sbatch and the move of the pickles
            orphans.append(job_id)
            continue
        submitted.append(replace(submission, job_id=job_id, log=str(paths.stdout)))
        logger.info("%s was submitted as job %s before its launcher ended", submission.trial, job_id)
    sweep.add_submissions(submitted)
    if orphans:
        logger.info("jobs %s have nothing to run, because their launcher was killed: cancelled", ", ".join(orphans))
        subprocess.run(["scancel", *orphans], capture_output=True, timeout=60, check=False)
