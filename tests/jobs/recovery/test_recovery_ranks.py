"""docs/operating.md, rows 12 to 15, 17 and 22: what one rank of several does to the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from jobs.runs.log_files import fatal_traceback
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial_state import TrialState
from jobs.state import liveness
from jobs.state.triage import Evidence, diagnose
from jobs.state.trial_status import trial_statuses
from petseg.run_folder.attempts import read_attempts
from petseg.run_folder.checkpoint import list_checkpoints
from tests.jobs.disturbed_runs import PAIR, contents, ended, launcher, record, rows_of, sweep_of
from tests.jobs.faulty_checkout import REPOSITORY, wait_until

# --- 12: a rank without memory (tests/jobs/test_retry.py has it on a cluster)


RANK_1 = """\
submitit ERROR (2026-03-01 09:40:00,637) - Submitted job triggered an exception
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/me/runs/lab/code/0123abcd/petseg/train.py", line 241, in train_step
[rank1]:     logits = run.model(image)
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
[rank1]:[W1124 11:33:48.802979781 ProcessGroupNCCL.cpp:1529] Warning: destroy_process_group() was not called
"""
RANK_0 = """\
submitit ERROR (2026-03-01 09:40:01,001) - Submitted job triggered an exception
[rank0]: Traceback (most recent call last):
[rank0]:   File "/home/me/runs/lab/code/0123abcd/petseg/train.py", line 241, in train_step
[rank0]:     logits = run.model(image)
[rank0]: RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:42173.
slurmstepd-node1: error: *** STEP 1.0 ON node1 CANCELLED AT 2026-03-01T09:40:02 ***
"""


def test_tracebacks_that_torch_marks_with_their_rank() -> None:
    """With several processes it prints `[rank1]: ` before each line."""
    lost, full = fatal_traceback(RANK_0), fatal_traceback(RANK_1)
    assert full is not None
    assert full.error == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert full.frame == "petseg/train.py:241 in train_step"
    assert lost is not None
    assert lost.error.endswith("Connection closed by peer [127.0.0.1]:42173.")
    evidence = Evidence(TrialState("failed", error=lost.error), host="node1", logs=(RANK_0, RANK_1))
    assert diagnose(evidence).cause == "gpu_memory"


# --- 13 to 15: ranks that stand still, and numbers that are none


@pytest.mark.slow
def test_a_rank_that_stands_still_is_shown_as_stalled_and_changes_no_number(
    tiny_sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "FEWEST_S", 1.0)
    monkeypatch.setattr(liveness, "EPOCHS_OF_SILENCE", 0)
    monkeypatch.setattr(liveness, "UNKNOWN_PACE_S", 1e9)
    flags = [*tiny_sweep, *PAIR, "--set", "train.epochs=4"]
    process = launcher(REPOSITORY, flags)
    try:
        wait_until(lambda: (tmp_path / "runs/lab/sweep.json").exists() and len(sweep_of(tmp_path).trials) == 1)
        (trial,) = sweep_of(tmp_path).trials
        wait_until(lambda: trial.metrics())
        rank = rank_1(tmp_path / "runs" / "lab" / "logs")
        os.kill(rank, signal.SIGSTOP)
        wait_until(lambda: [row.status for row in trial_statuses(sweep_of(tmp_path))] == ["stalled"])
        os.kill(rank, signal.SIGCONT)
    finally:
        code, log = ended(process)
    assert code == 0, log
    assert len(read_attempts(trial.folder)) == 1
    assert ended(launcher(REPOSITORY, [*flags, "--name", "calm"]))[0] == 0
    (calm,) = load_sweep(tmp_path / "runs" / "calm").trials
    assert rows_of(trial.folder) == rows_of(calm.folder)


def rank_1(logs: Path) -> int:
    """The pid of the second process of the one job that logs there."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" not in words or os.fsencode(logs) not in words:
                continue
            if b"SUBMITIT_LOCAL_GLOBALID=1" in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)
    raise AssertionError("there is no second rank")


@pytest.mark.slow
def test_all_ranks_stop_together_at_a_loss_that_is_not_finite(pet_shards: Path, tmp_path: Path) -> None:
    code, log = ended(record(pet_shards, tmp_path, ranks=2, **{"optim.lr": 1e30, "world-size": 2}))
    assert code != 0
    failures = [line for line in log.splitlines() if line.startswith("failed: the loss became NaN or infinite")]
    assert len(failures) == 2
    assert failures[0] == failures[1]
    assert json.loads((tmp_path / "run" / "not_finite.json").read_text())["keys_by_step"]


# --- 17: ports


@pytest.mark.slow
def test_jobs_of_several_processes_side_by_side_and_a_taken_port(tiny_sweep: list[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else's is as good
            taken.bind(("127.0.0.1", 29500))  # where torch and accelerate meet by default
            taken.listen()
        flags = [*tiny_sweep, *PAIR, "--axis", "train.seed=0,1", "--max-parallel", "2"]
        code, log = ended(launcher(REPOSITORY, flags))
    assert code == 0, log
    results = [trial.result() for trial in sweep_of(tmp_path).trials]
    assert [result.world_size for result in results if result] == [2, 2]


# --- 22: another number of processes


@pytest.mark.slow
def test_more_processes_than_samples_of_a_batch_are_refused(pet_shards: Path, tmp_path: Path) -> None:
    flags = {"train.batch-size": 2, "train.save-every-min": 1e-9}
    code, _ = ended(record(pet_shards, tmp_path, "SIGTERM:0:1:1", ranks=2, **flags))
    assert code != 0
    saved = contents(tmp_path / "run")
    code, log = ended(record(pet_shards, tmp_path, ranks=3, **flags))
    assert code != 0
    assert "train.batch_size = 2 is the batch of all 3 processes together: it must be at least as large" in log
    assert contents(tmp_path / "run") == saved
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].state["so_far"]["steps"] == 2
