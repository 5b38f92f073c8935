"""Runs jobs on this machine by submitit's local executor: a limited number at a time, each with its own GPUs.

submitit alone starts all jobs at once and shows GPU 0 to every one of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit

from slurm.gpus import visible_gpus
from slurm.request import Request
from slurm.resources import Resources

OnJob = Callable[[int, "submitit.Job[Any]", str], None]

# The caller decides how often a job may be requeued, because it knows the progress. submitit's own count must not
# interfere: it takes each preemption of a job with a time limit of 10 minutes or less for a timeout.
MAX_REQUEUES = 1000

POLL_S = 0.05
SAVE_GRACE_S = 10.0  # from "save now" to "end now"
KILL_GRACE_S = 5.0  # submitit's controller itself waits 1 s before it kills its processes
CONTROLLERS_LOG = "controllers.log"

logger = logging.getLogger(__name__)


def run_local(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    request: Request,
    on_job: OnJob,
    save_grace_s: float = SAVE_GRACE_S,
) -> list[submitit.Job[Any]]:
    """Run every item in processes of its own, until all have ended.

    On KeyboardInterrupt and any other exception, running jobs get SIGTERM, which makes them save, and are ended after
    `save_grace_s` seconds; a second Ctrl-C ends them at once. Raises ValueError if this machine lacks the resources.
    """
    resources = request.resources
    if resources.nodes > 1:
        raise ValueError(f"nodes={resources.nodes}: this machine is one node; use --cluster slurm")
    free = _gpu_slots(resources.gpus_per_node, request.max_parallel)
    executor = _build_executor(request.folder, resources)
    executor.update_parameters(variables=dict(request.variables))
    jobs: list[submitit.LocalJob[Any]] = []
    running: dict[int, list[int]] = {}  # index of the job -> its GPUs
    try:
        while len(jobs) < len(items) or running:
            while free and len(jobs) < len(items):
                gpus = free.pop()
                executor.update_parameters(visible_gpus=gpus)
                jobs.append(executor.start(function, items[len(jobs)]))
                running[len(jobs) - 1] = gpus
                on_job(len(jobs) - 1, jobs[-1], "started")
            for index in [index for index in running if jobs[index].done()]:
                free.append(running.pop(index))
                on_job(index, jobs[index], "ended")
            if running:
                time.sleep(POLL_S)
    except BaseException as error:
        if running and isinstance(error, KeyboardInterrupt):
            logger.warning("stopping: what runs saves, for %g s at most; Ctrl-C again ends it at once", save_grace_s)
        cancel([job for job in jobs if not job.done()], save_grace_s)
        raise
    return list(jobs)


def cancel(jobs: Sequence[submitit.LocalJob[Any]], save_grace_s: float = SAVE_GRACE_S) -> None:
    """End local jobs: SIGTERM (save now), then submitit's own way, then SIGKILL for what is left."""
    processes = [job._process for job in jobs if job._process is not None]
    for sent, grace_s in ((signal.SIGTERM, save_grace_s), (signal.SIGINT, KILL_GRACE_S)):
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: on to the next, harder signal
            for process in processes:
                process.send_signal(sent)  # nothing happens to one that has ended
            deadline = time.monotonic() + grace_s
            while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
                time.sleep(POLL_S)
    for process in processes:
        if process.poll() is None:
            # The controller leads its session, so its pid is the process group of all that the job started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def require_folder(folder: Path) -> None:
    """Create the folder for logs and pickles, without write permission for others: a pickle is code."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(folder.stat().st_mode & ~0o022)


def _gpu_slots(gpus_per_job: int, max_parallel: int) -> list[list[int]]:
    """One list of GPU indices for each job that may run at a time, to be taken from the end."""
    if not gpus_per_job:
        return [[] for _ in range(max_parallel)]
    visible = visible_gpus()
    if gpus_per_job > len(visible):
        raise ValueError(f"gpus={gpus_per_job}: this machine shows {len(visible)}; use --gpus 0 to run on the CPU")
    slots = [visible[start : start + gpus_per_job] for start in range(0, len(visible), gpus_per_job)]
    return [slot for slot in slots if len(slot) == gpus_per_job][:max_parallel][::-1]


def _build_executor(folder: Path, resources: Resources) -> _LocalExecutor:
    require_folder(folder)
    executor = _LocalExecutor(folder, max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(
        timeout_min=resources.timeout_min,
        signal_delay_s=resources.signal_delay_s,
        tasks_per_node=resources.processes_per_node,
        gpus_per_node=resources.gpus_per_node,
        stderr_to_stdout=True,
    )
    return executor


class _LocalExecutor(submitit.LocalExecutor):
    """Starts each controller in a session of its own.

    In ours, Ctrl-C at the terminal would reach controllers and jobs directly, and submitit kills a job one
    second after that, in the middle of its save.
    """

    def start(self, function: Callable[[Any], Any], item: Any) -> submitit.LocalJob[Any]:
        job = self.submit(function, item)
        assert isinstance(job, submitit.LocalJob)
        return job

    def _submit_command(self, command: str) -> submitit.LocalJob[Any]:
        parameters = self.parameters
        tasks = int(parameters["tasks_per_node"])
        env = {
            **os.environ,
            **parameters["variables"],
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * parameters["timeout_min"]),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "CUDA_VISIBLE_DEVICES": ",".join(str(gpu) for gpu in parameters["visible_gpus"]),
        }
        controller = [sys.executable, "-m", "submitit.local._local", str(self.folder)]
        # the controller's traceback at its end belongs on no terminal; jobs have logs of their own
        with (self.folder / CONTROLLERS_LOG).open("ab") as log:
            process = subprocess.Popen(controller, env=env, start_new_session=True, stdout=log, stderr=log)
        # submitit names its files by the controller's pid: those of an earlier job with this pid would be read
        # as this one's function and result. The controller needs longer than this to start.
        for stale in self.folder.glob(f"{process.pid}_*"):
            stale.unlink()
        return submitit.LocalJob(self.folder, str(process.pid), tasks=list(range(tasks)), process=process)
