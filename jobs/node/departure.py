"""Ends a job whose work is saved, or whose node is unfit: at once, and requeued if it should run again."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jobs.node.faults import Fault, note_fault, read_faults
from jobs.node.rendezvous import remove_rendezvous
from jobs.runs.trial import Trial
from jobs.runs.trial_state import Status
from petseg.footprint.gpus import NodeFault, node_name
from shards.cause import Cause, cause_of
from shards.command import INTERRUPTED
from slurm import ending
from slurm.ending import Ending

if TYPE_CHECKING:
    import submitit

LOCAL_REQUEUE = 144  # submitit's local controller starts a job again that exits with it
PATIENCE_S = 600.0  # for Slurm to answer, and then to end the job; a new slurmctld takes over by then
MOVES = 3  # nodes that a job tries

logger = logging.getLogger(__name__)


def exit_job(environment: submitit.JobEnvironment, requeue: bool, folders: Sequence[str] = ()) -> NoReturn:
    """End this process of a job whose work is saved; Slurm starts the job again if it should.

    requeue: the signal asks for it, as ahead of the time limit. After TERM Slurm is asked what it means: a preempted
    job goes back into the queue, and one that was cancelled does not, whatever signals it got.
    folders: of the job's trials; what interrupted them is noted in their states.

    Rank 0 alone decides. The others wait for it: the first rank that exits ends the job, and rank 0 must requeue first.
    """
    remove_rendezvous(environment)
    if environment.name() != "slurm":
        sys.exit(LOCAL_REQUEUE if requeue else INTERRUPTED)
    if environment.global_rank == 0:
        why = ending.await_ending(environment.job_id, PATIENCE_S)
        note_cause(folders, environment.job_id, why, requeue)
        if not comes_again(why, requeue):
            logger.info("saved, and the job is not started again (%s)", why.name.lower())
            sys.exit(INTERRUPTED)
        if refusal := ending.requeue(environment.job_id):
            logger.error("Slurm does not requeue the job (%s): run the sweep again to go on", refusal)
            sys.exit(INTERRUPTED)
        logger.info("saved, and the job is back in the queue (%s)", why.name.lower())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the end of a job that was requeued: nothing is left to save
    time.sleep(2 * PATIENCE_S)
    sys.exit(INTERRUPTED)


def comes_again(why: Ending, requeue: bool) -> bool:
    """Whether the job should be requeued. requeue: a signal asked for it."""
    if why is Ending.DECIDED:
        return False  # not even ahead of the time limit: a cancelled job that is requeued would come back
    if why is Ending.RUNNING:
        return requeue or ending.node_shuts_down()
    return requeue or why is Ending.PREEMPTED


def note_cause(folders: Sequence[str], job_id: str, why: Ending, requeue: bool) -> None:
    """Write the cause into the states of the trials that this job interrupted."""
    if why is Ending.PREEMPTED:
        cause = Cause.PREEMPTED
    elif why is Ending.TIMED_OUT or (requeue and why is not Ending.DECIDED):
        cause = Cause.TIMEOUT  # or it is near
    elif why is Ending.RUNNING and ending.node_shuts_down():
        cause = Cause.NODE_FAILURE
    else:
        return
    for folder in folders:
        trial = Trial(Path(folder).name, {}, Path(folder))
        state = trial.state().of_job(job_id)
        if state.status == "interrupted":
            trial.write_state(replace(state, cause=cause))


def exit_for_another_node(environment: submitit.JobEnvironment, fault: NodeFault, folders: Sequence[str]) -> None:
    """Record what the node lacks, and requeue the job for another node; returns only if Slurm refuses.

    Any rank may call this: it alone may have met the fault, while the others wait for it.
    """
    node, sweep_folder = node_name(os.environ), Path(folders[0]).parents[1]
    if environment.name() != "slurm":
        end_trials(folders, environment.job_id, "failed", fault)
        return
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    note_fault(sweep_folder, Fault(environment.job_id, start, node, str(fault)))
    tried = {noted.node for noted in read_faults(sweep_folder) if noted.job_id == environment.job_id}
    refusal = f"it has tried {', '.join(sorted(tried))}" if len(tried) >= MOVES else ""
    end_trials(folders, environment.job_id, "failed" if refusal else "interrupted", fault)
    if not refusal:
        refusal = ending.requeue_elsewhere(environment.job_id, node)
    if not refusal:
        logger.error("%s; the job is back in the queue, without %s", fault, node)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE_S)
        sys.exit(INTERRUPTED)
    logger.error("the job is not started again on another node: %s", refusal)
    end_trials(folders, environment.job_id, "failed", fault)


def end_trials(folders: Sequence[str], job_id: str, status: Status, error: Exception) -> None:
    """Write into the states of the trials that this job began why they end."""
    for folder in folders:
        trial = Trial(Path(folder).name, {}, Path(folder))
        state = trial.state().of_job(job_id)
        if state.status in ("running", "interrupted"):
            trial.write_state(replace(state, status=status, cause=cause_of(error), error=str(error)))
