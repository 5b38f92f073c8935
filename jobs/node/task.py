"""The callable that travels to the cluster: trials, from their folders.

It is found there by its import path, so nothing of it may live in a script, and torch is imported only when it runs.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import submitit

from jobs.node.departure import end_trials, exit_for_another_node, exit_job
from jobs.node.rendezvous import RanksNotMet, set_up_ranks
from jobs.node.workers import work_off
from jobs.runs.log_files import LOG_TIME, TRIAL_FAILED
from jobs.runs.naming import trial_name
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Trial
from jobs.runs.trial_state import Status, TrialState
from petseg.config.values import config_from_dict
from petseg.data.store import is_remote
from petseg.footprint.gpus import NodeFault
from petseg.run.peers import LostPeer
from petseg.run_folder.attempts import read_attempts
from petseg.run_folder.layout import CONFIG_NAME, load_config
from petseg.training import interrupt
from petseg.training.pruning import EarlyStop, StoppedEarly
from shards.cause import Cause, cause_of
from shards.command import INTERRUPTED, Interrupted, without_secrets

MAX_STARTS_WITHOUT_PROGRESS = 5

logger = logging.getLogger(__name__)


class TrialTask:
    """Runs trials of a sweep, one after the other or some at once, in every process of its job.

    The task itself has no state: a requeued job runs it again, skips the trials that are done, and resumes the others
    from their newest checkpoints.
    """

    def __init__(self, world_size: int, threads: int, at_once: int = 1, named: tuple[str, ...] = ()) -> None:
        """threads: of each process. at_once: how many trials train side by side, each in a process of its own.

        named: the shard sets that the user named at submission. This comes from the launcher, with the job itself; a
        trial's config.json, which could have been changed since, cannot have the job fetch or run anything else.
        """
        self.world_size, self.threads, self.at_once = world_size, threads, at_once
        self.named = named

    def __call__(self, folders: Sequence[str]) -> None:
        interrupt.install()  # before torch is imported and the ranks meet, which takes a while; submitit's are replaced
        environment = submitit.JobEnvironment()
        set_up_logging(environment.global_rank)
        try:
            if self.at_once > 1:
                work_off(folders, self.at_once, self.threads, self.named)
            else:
                set_up_ranks(environment)
                if failed := self.run_all(folders, environment, last=folders[-1]):
                    raise failed[0]
        except (
            LostPeer
        ) as lost:  # retry and the sweep's next launch, which learn the cause, decide whether to try again
            logger.error("%s", lost)
            sys.exit(INTERRUPTED)
        except Interrupted as stop:
            exit_job(environment, stop.requeue, folders)
        except RanksNotMet as error:
            end_trials(folders, environment.job_id, "failed", error)  # which another rank may have begun
            raise
        except NodeFault as fault:
            exit_for_another_node(environment, fault, folders)
            raise

    def run_all(
        self, folders: Iterable[str], environment: submitit.JobEnvironment, slot: int = 0, last: str = ""
    ) -> list[Exception]:
        """Train the trials in these folders; returns the exceptions of those that failed, after logging them.

        slot: number of the worker, where several share the job. last: the folder whose failure ends the job.
        """
        failed: list[Exception] = []
        for folder in folders:
            try:
                self._run(Trial(Path(folder).name, {}, Path(folder)), environment, slot)
            except (Interrupted, NodeFault):  # the node would fail the next one too
                raise
            except Exception as error:
                if self.world_size > 1 or folder == last:
                    raise  # after an error that one rank met alone, the ranks cannot meet for another trial
                logger.exception(TRIAL_FAILED, Path(folder).name)
                failed.append(error)
        return failed

    def _run(self, trial: Trial, environment: submitit.JobEnvironment, slot: int) -> None:
        here = TrialState(
            "running",
            host=socket.gethostname(),
            job_id=environment.job_id,
            pid=os.getpid(),
            restarts=len(read_attempts(trial.folder)),
            slot=slot,
            at_once=self.at_once if slot else 1,
        )
        rank = environment.global_rank
        ended: Status = "done"
        if rank == 0:
            trial.write_state(here)
        try:
            # several ranks stop together at a step: were one that got the signal alone to leave, the others would wait
            if interrupt.requested() and self.world_size == 1:
                raise Interrupted("a signal came before the start", interrupt.requeue_requested())
            self._train(trial)
        except StoppedEarly as early:
            logger.info("%s: %s", trial.id, early)
            ended = "pruned"
        except LostPeer as lost:  # no signal ended the trial: the logs of all ranks say what did
            note_failure(trial, here, lost, rank)
            raise
        except Interrupted as stop:
            if rank == 0:
                trial.write_state(replace(here, status="interrupted", error=str(stop)))
            raise
        except NodeFault:
            raise  # what becomes of the trial is decided for the whole job
        except Exception as error:
            note_failure(trial, here, error, rank)
            raise
        if rank == 0:
            trial.write_state(replace(here, status=ended))

    def _train(self, trial: Trial) -> None:
        import torch

        from petseg.training.loop import Terms, train

        torch.set_num_threads(self.threads)
        config = config_from_dict(load_config(trial.folder)["config"])
        if is_remote(config.data.shards) and config.data.shards not in self.named:
            raise ValueError(
                f"{trial.folder / CONFIG_NAME} names the shards {without_secrets(config.data.shards)}, which the sweep "
                "was not submitted with: submit it again"
            )
        sweep = load_sweep(trial.folder.parents[1])
        name = trial_name(sweep, trial.id, config)
        early = EarlyStop(sweep.early_stopping, partial(others, trial)) if sweep.early_stopping else None
        train(config, trial.folder, Terms(name, self.world_size, MAX_STARTS_WITHOUT_PROGRESS, early))


def others(trial: Trial) -> list[Path]:
    """The folders of the other trials, including those that a search has added since."""
    return [folder for folder in sorted(trial.folder.parent.iterdir()) if folder.name != trial.folder.name]


def note_failure(trial: Trial, here: TrialState, error: Exception, rank: int) -> None:
    """Write into the trial's state that it failed, with the cause that the error names.

    Ranks other than the first write only causes that they can name: rank 0 learns just that a rank is gone, and that
    does not replace a cause which is already known.
    """
    cause, before = cause_of(error), trial.state().of_job(here.job_id)
    no_answer = (None, Cause.UNKNOWN)
    is_explained = before.status == "failed" and before.cause not in no_answer
    tells_more = cause not in no_answer and not is_explained if rank else not (is_explained and cause is Cause.UNKNOWN)
    if tells_more:
        last_line = traceback.format_exception_only(error)[-1].strip()
        trial.write_state(replace(here, status="failed", error=last_line, cause=cause))


def set_up_logging(rank: int) -> None:
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s",
        datefmt=LOG_TIME,
    )
