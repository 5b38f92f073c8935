"""Logs as torch, submitit, srun and slurmstepd write them."""

from __future__ import annotations

START = """\
submitit INFO (2026-03-01 09:30:00,108) - Starting with JobEnvironment(job_id=12_0, hostname=node1, local_rank=0(1), \
node=0(1), global_rank=0(1))
submitit INFO (2026-03-01 09:30:00,108) - Loading pickle: /home/me/runs/lab/logs/12_0_submitted.pkl
"""
EPOCH = "09:31:00 rank 0 INFO petseg.training.progress_bar: epoch 1/10 train loss 1.2117 dice 0.4341 | val loss 1.18\n"


def raised(error: str, frames: str = "") -> str:
    """As submitit ends a process."""
    return (
        f"""\
submitit ERROR (2026-03-01 09:40:00,637) - Submitted job triggered an exception
09:40:00 rank 0 ERROR submitit: Submitted job triggered an exception
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/home/me/petseg/.venv/lib/python3.11/site-packages/submitit/core/submission.py", line 69, in process_job
    raise error
  File "/home/me/petseg/.venv/lib/python3.11/site-packages/submitit/core/utils.py", line 137, in result
    self._result = self.function(*self.args, **self.kwargs)
                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/home/me/runs/lab/code/0123abcd/jobs/node/task.py", line 55, in __call__
    self._run(Trial(Path(folder).name, {{}}, Path(folder)), environment)
  File "/home/me/runs/lab/code/0123abcd/petseg/train.py", line 141, in train_step
    logits = self.model(image)
{frames}"""
        + error
        + "\nsrun: error: node1: task 0: Exited with exit code 1\nsrun: launch/slurm: _step_signal: Terminating "
        "StepId=12.0\n"
    )


CUDA_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB "
    "of which 1.19 GiB is free. Including non-PyTorch memory, this process has 22.45 GiB memory in use."
)
PEER = (
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was "
    "a network error"
)
OOM_KILL = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.\n"
    "srun: error: node1: task 0: Out Of Memory\n"
)
CANCELLED_STEP = "slurmstepd-node1: error: *** STEP 12.0 ON node1 CANCELLED AT 2026-03-01T09:40:00 ***\n"
