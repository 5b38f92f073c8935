"""The callable that travels to the cluster: one trial, from its folder.

It is found there by its import path, so nothing of it may live in a script, and torch is imported only when it runs.
"""

from __future__ import annotations

import logging
import os
import socket
import traceback
from pathlib import Path

import submitit

from jobs.trial import Trial
from petseg.config import RunConfig, config_from_dict
from petseg.run_folder import load_config
from petseg.tracking import RunName

logger = logging.getLogger(__name__)


class TrialTask(submitit.helpers.Checkpointable):
    """Runs one trial of a sweep in every process of its job.

    When the job is preempted or runs out of time, submitit asks `checkpoint` (inherited: this very task again) and
    requeues; the run then goes on from its newest checkpoint.
    """

    def __init__(self, sweep: str, world_size: int, threads: int) -> None:
        self.sweep, self.world_size, self.threads = sweep, world_size, threads

    def __call__(self, folder: str) -> None:
        trial = Trial(Path(folder).name, {}, Path(folder))
        environment = submitit.JobEnvironment()
        where = {"host": socket.gethostname(), "job_id": environment.job_id, "pid": os.getpid()}
        first = environment.global_rank == 0
        if first:
            trial.write_state(status="running", **where)
        try:
            self._train(trial, environment)
        except Exception as error:
            if first:
                last_line = traceback.format_exception_only(error)[-1].strip()
                trial.write_state(status="failed", error=last_line, **where)
            raise
        if first:
            trial.write_state(status="done", **where)

    def _train(self, trial: Trial, environment: submitit.JobEnvironment) -> None:
        logging.basicConfig(
            level=logging.INFO,
            format=f"%(asctime)s rank {environment.global_rank} %(levelname)s %(name)s: %(message)s",
            datefmt="%H:%M:%S",
        )
        set_up_ranks(environment)
        import torch

        from petseg.train import train

        torch.set_num_threads(self.threads)
        config = config_from_dict(load_config(trial.folder)["config"])
        train(config, trial.folder, run_name(self.sweep, trial.id, config), self.world_size)


def run_name(sweep: str, trial: str, config: RunConfig) -> RunName:
    """How wandb shows a trial: one run for ever, grouped with its sweep."""
    tags = (config.model.arch, config.augment.policy, f"seed{config.train.seed}")
    return RunName(id=f"{sweep}-{trial}", group=sweep, tags=tags)


def set_up_ranks(environment: submitit.JobEnvironment) -> None:
    """Tell torch and accelerate who is who, in a job of several processes."""
    if environment.num_tasks == 1:
        return
    submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
