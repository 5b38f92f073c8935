"""Runs the commands of a chain's job, one after the other, in the folder that the chain was started in."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.node.departure import exit_job
from jobs.state.chain_state import forget_end, write_end
from petseg.training import interrupt
from shards.command import INTERRUPTED, NOT_KNOWN, OK

NOT_NOW = (INTERRUPTED, NOT_KNOWN)  # of a launcher that asks to be run again
AGAIN_S = 300

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One command: `python -m MODULE ARGUMENTS`."""

    module: str
    arguments: tuple[str, ...]
    must: bool = True  # the chain ends where it does not succeed
    accepts: tuple[int, ...] = ()  # exit codes other than 0 that are a success


def run_steps(item: tuple[str, Sequence[Step]]) -> None:
    """(working folder, steps); the callable that travels to the cluster. Raises RuntimeError if a step that must fails.

    Each is a process of its own, so that it has the exit codes and the log of a command typed by hand. A signal to the
    job ends the step, and the job is requeued where that is called for: all steps can be done again. A step for which
    Slurm has no room now, as a sweep that is larger than the site's limits, is done again until it has.
    """
    from submitit import JobEnvironment  # a chain's command needs none

    folder, steps = item
    in_job = "SUBMITIT_EXECUTOR" in os.environ
    if in_job:
        interrupt.install()
        environment = JobEnvironment()
        forget_end(environment.paths.folder, environment.job_id)  # of an earlier start of the job
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for step in steps:
        code = run_step(step, folder)
        while code in NOT_NOW and step.must and in_job and not interrupt.requested():
            logger.info(
                "exit code %d: Slurm accepts no more jobs now, or does not answer; again in %d s", code, AGAIN_S
            )
            code = run_step(step, folder) if paused(AGAIN_S) else code
        if code and step.must and in_job and interrupt.requested():
            exit_job(JobEnvironment(), interrupt.requeue_requested())
        if code and step.must and in_job:
            write_own_end(step.module, code)
        if code and step.must:
            raise RuntimeError(f"python -m {step.module} ended with exit code {code}: see above")
    if in_job:
        write_own_end(steps[-1].module, OK)


def write_own_end(module: str, code: int) -> None:
    """Record in the job's folder how it ended: Slurm forgets."""
    from submitit import JobEnvironment

    environment = JobEnvironment()
    write_end(environment.paths.folder, environment.job_id, module, code)


def paused(seconds: float) -> bool:
    """Wait so many seconds, or until a signal asks the job to end; whether the time passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not interrupt.requested():
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    return not interrupt.requested()


def run_step(step: Step, folder: str) -> int:
    """Run it to its end, however long it takes; returns its exit code."""
    command = [sys.executable, "-m", step.module, *step.arguments]
    logger.info("python -m %s", shlex.join(command[2:]))
    sys.stdout.flush()
    code = subprocess.run(command, cwd=folder, check=False).returncode
    return 0 if code in step.accepts else code
