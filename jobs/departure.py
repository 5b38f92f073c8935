"""How a job whose work is saved leaves its node: at once, and back into the queue where that is called for."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import submitit

from jobs.causes import Cause
from jobs.rendezvous import part
from jobs.trial import Trial
from shards.command import INTERRUPTED
from slurm import ending
from slurm.ending import Ending

LOCAL_REQUEUE = 144  # submitit's local controller starts a job again that exits with it
PATIENCE_S = 600.0  # for Slurm to say what becomes of the job, and then to end it; a new slurmctld takes over by then

logger = logging.getLogger(__name__)


def leave(environment: submitit.JobEnvironment, requeue: bool, folders: Sequence[str] = ()) -> NoReturn:
    """End this process of a job whose work is saved; Slurm starts the job again if it should.

    requeue: the signal asks for it, as ahead of the time limit. After TERM Slurm is asked what it means: a preempted
    job goes back into the queue, and one that was cancelled does not, whatever signals it got.
    folders: of the job's trials; what interrupted them is noted in their states.

    Rank 0 alone decides. The others wait for it: the first rank that exits would end the job before Slurm is told.
    """
    part(environment)
    if environment.name() != "slurm":
        sys.exit(LOCAL_REQUEUE if requeue else INTERRUPTED)
    if environment.global_rank == 0:
        why = ending.await_ending(environment.job_id, PATIENCE_S)
        note_cause(folders, environment.job_id, why, requeue)
        if not comes_again(why, requeue):
            logger.info("saved, and the job is not started again (%s)", why.name.lower())
            sys.exit(INTERRUPTED)
        if refusal := ending.requeue(environment.job_id):
            logger.error("the job cannot be requeued (%s): run the sweep again to go on", refusal)
            sys.exit(INTERRUPTED)
        logger.info("saved, and the job is back in the queue (%s)", why.name.lower())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the end of a job that was requeued: nothing is left to save
    time.sleep(2 * PATIENCE_S)
    sys.exit(INTERRUPTED)


def comes_again(why: Ending, requeue: bool) -> bool:
    """Whether the job is to be put back into the queue. requeue: a signal asked for it."""
    if why is Ending.DECIDED:
        return False  # not even ahead of the time limit: a cancelled job that is requeued would come back
    if why is Ending.RUNNING:
        return requeue or ending.node_shuts_down()
    return requeue or why is Ending.PREEMPTED


def note_cause(folders: Sequence[str], job_id: str, why: Ending, requeue: bool) -> None:
    """Write why they stopped into the states of the trials that this job had to interrupt."""
    cause: Cause
    if why is Ending.PREEMPTED:
        cause = "preempted"
    elif why is Ending.TIMED_OUT or (requeue and why is not Ending.DECIDED):
        cause = "timeout"  # or it is near
    else:
        return
    for folder in folders:
        trial = Trial(Path(folder).name, {}, Path(folder))
        state = trial.state()
        if state.get("job_id") == job_id and state.get("status") == "interrupted":
            trial.write_state(**state | {"cause": cause})
