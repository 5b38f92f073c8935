"""Which source of a cause comes before which, and what is gathered of a trial whose job is over."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.triage import Evidence, LastJob, diagnose, gather
from shards.cause import Cause
from slurm.cluster import JobState
from tests.jobs.job_logs import CANCELLED_STEP, CUDA_OOM, EPOCH, OOM_KILL, PEER, START, raised
from tests.jobs.written_trials import sweep_of

KEY_ERROR = "KeyError: 'dice'"
TIME_LIMIT = "slurmstepd: error: *** JOB 12 ON node1 CANCELLED AT 2026-03-01T13:30:00 DUE TO TIME LIMIT ***\n"
NODE_LOST = "srun: error: Node failure on node1\n"
EXECVE = "slurmstepd: error: execve(): /home/me/python: No such file or directory\n"


def job(state: str, exit_code: str = "", reason: str = "") -> JobState:
    return JobState(state, reason, "node1", "sacct", exit_code)


def state(word: Any, error: str = "", cause: Cause | None = None) -> TrialState:
    return TrialState(word, error=error, cause=cause, job_id="12_0" if word else "")


@pytest.mark.parametrize(
    ("own", "last", "log", "cause"),
    [
        # a trial's own error comes before the end of a job that others shared, a lost peer after it
        (state("failed", KEY_ERROR), job("OUT_OF_MEMORY"), "", "code"),
        (state("failed", KEY_ERROR), job("FAILED"), OOM_KILL, "code"),
        (state("failed", PEER), job("FAILED"), OOM_KILL, "host_memory"),
        (state("failed", PEER), job("FAILED"), NODE_LOST, "node_failure"),
        (state("failed", PEER), job("NODE_FAIL"), "", "node_failure"),
        (state("failed", PEER), job("TIMEOUT"), "", "unknown"),
        (state("failed", PEER), job("FAILED"), TIME_LIMIT, "unknown"),
        (state("failed", "", Cause.UNKNOWN), job("OUT_OF_MEMORY"), "", "host_memory"),
        (state("failed", "", Cause.DATA), job("OUT_OF_MEMORY"), OOM_KILL, "data"),
        (state("failed", CUDA_OOM), job("TIMEOUT"), "", "gpu_memory"),
        # Slurm's word comes before that of its daemons, and both after an exception
        (state("running"), job("TIMEOUT"), raised(CUDA_OOM), "gpu_memory"),
        (state("running"), job("OUT_OF_MEMORY"), raised(CUDA_OOM), "host_memory"),
        (state("running"), job("FAILED"), raised(CUDA_OOM) + OOM_KILL, "host_memory"),
        (state("running"), job("FAILED"), raised(CUDA_OOM) + TIME_LIMIT, "gpu_memory"),
        (state("running"), job("PREEMPTED"), TIME_LIMIT, "preempted"),
        (state("running"), job("FAILED"), TIME_LIMIT, "timeout"),
        (state("running"), job("DEADLINE"), "", "timeout"),
        (state("running"), job("BOOT_FAIL"), "", "node_failure"),
        (state("running"), job("FAILED", reason="BadConstraints"), "", "unplaceable"),
        (state(""), job("CANCELLED", reason="BadConstraints"), "", "unplaceable"),
        (state(""), job("CANCELLED", reason="Priority"), "", "cancelled"),
        # an interrupted trial saved in time: what was raised while it ended says nothing
        (state("interrupted"), job("FAILED"), raised(CUDA_OOM), "cancelled"),
        (state("interrupted"), job("TIMEOUT"), raised(CUDA_OOM), "timeout"),
        (state("interrupted", "", Cause.PREEMPTED), job("FAILED"), TIME_LIMIT, "preempted"),
        (state("interrupted", "", Cause.UNKNOWN), job("FAILED"), TIME_LIMIT, "timeout"),
        (state("interrupted"), job("FAILED"), OOM_KILL, "host_memory"),
        # words about a launch count only before the trial began
        (state("running"), job("MISSING"), EXECVE, "unknown"),
        (state(""), job("MISSING"), EXECVE, "launch"),
        (state(""), job("MISSING"), START, "unknown"),
        (state(""), job("FAILED"), START, "launch"),
        (state(""), None, START, "launch"),
        (state(""), None, "", "unknown"),
        (state(""), job("FAILED"), raised(KEY_ERROR), "launch"),
        (state("running"), job("FAILED"), raised(KEY_ERROR), "code"),
        (state("done"), job("COMPLETED"), raised(KEY_ERROR), "unknown"),
        (state("running"), job("FAILED"), raised(PEER), "unknown"),
        (state("failed", KEY_ERROR), job("FAILED"), raised(PEER), "unknown"),
        (state("failed", PEER), job("FAILED"), "", "unknown"),
        (state("failed"), job("FAILED"), "", "unknown"),
        # SIGKILL, by either form of an exit code, or a process that is gone
        (state("running"), job("COMPLETED", "137:0"), "", "killed"),
        (state("running"), job("COMPLETED", "0:9"), "", "killed"),
        (state(""), job("COMPLETED", "0:9"), "", "killed"),
        (state("running"), job("COMPLETED", "1:0"), "", "unknown"),
        (state("running"), job("COMPLETED", "0:15"), "", "unknown"),
        (state("running"), job("FAILED", "1:0"), "", "killed"),
        (state("interrupted", "", Cause.STOPPED), None, "", "stopped"),
        (state("running"), job("FAILED"), CANCELLED_STEP, "killed"),  # of a step, which another rank's death ends too
    ],
)
def test_the_nearest_source_of_a_cause_counts(own: TrialState, last: JobState | None, log: str, cause: str) -> None:
    assert diagnose(Evidence(own, job=last, logs=(log,))).cause == cause


def test_a_folder_is_unseen_only_where_a_job_failed_before_its_trial_began_and_left_no_log() -> None:
    unseen = Evidence(job=job("FAILED"), log_is_missing=True)
    assert diagnose(unseen).cause == "unseen_folder"
    for other, cause in (
        (replace(unseen, log_is_missing=False), "launch"),
        (replace(unseen, job=job("COMPLETED")), "unknown"),
        (replace(unseen, job=None), "unknown"),
        (replace(unseen, state=state("done")), "unknown"),
        (replace(unseen, waited=True), "unseen_folder"),
        (replace(unseen, waited=True, log_is_missing=False), "never_began"),
    ):
        assert diagnose(other).cause == cause


def test_the_signature_and_the_traceback_are_those_of_the_rank_that_failed_first_by_itself() -> None:
    ranks = (raised(PEER), raised(KEY_ERROR), raised("ValueError: x"))
    verdict = diagnose(Evidence(state("running"), job=job("FAILED"), logs=ranks))
    assert (verdict.cause, verdict.signature) == ("code", "KeyError at petseg/train.py:141 in train_step")
    assert verdict.traceback.endswith(KEY_ERROR)
    foreign = 'Traceback (most recent call last):\n  File "/usr/lib/a.py", line 1, in f\n' + "ValueError: " + "x" * 200
    for end in ("", "\n", "\nsecond line\n"):
        verdict = diagnose(Evidence(state("running"), job=job("FAILED"), logs=(foreign + end,)))
        assert (verdict.cause, verdict.signature) == ("code", "ValueError: " + "x" * 108)
    memory = diagnose(Evidence(state("running"), job=job("FAILED"), logs=(raised(CUDA_OOM),)))
    assert (memory.signature, memory.traceback, memory.retryable) == ("gpu_memory", "", True)
    lost = Evidence(state("running"), job=job("NODE_FAIL"), logs=(raised(KEY_ERROR),))
    assert diagnose(lost).signature == "node_failure its node"
    assert diagnose(lost).traceback == ""


def test_advice_names_the_host_the_folder_and_what_makes_room() -> None:
    full = diagnose(Evidence(state("failed", "", Cause.DISK_FULL), sweep="runs/lab"))
    assert "`python jobs/clean.py runs/lab --older-than 0m --checkpoints-only --dry-run` shows" in full.advice
    unseen = Evidence(host="node7", job=job("FAILED"), log_is_missing=True, sweep="runs/lab")
    assert diagnose(unseen).advice.startswith("node7 could not even open the job's log in runs/lab: ")


@pytest.mark.parametrize(
    ("known", "advice"),
    [
        ({}, "its time was up before it finished an epoch: raise --timeout-min"),
        ({"epochs": 9, "used_s": 60.0}, "its time was up before it finished an epoch: raise --timeout-min"),
        ({"epochs_done": 1}, "its time was up after 1 epochs: raise --timeout-min"),
        ({"epochs_done": 3, "epochs": 9}, "its time was up after 3 of 9 epochs: raise --timeout-min"),
        (
            {"epochs_done": 3, "epochs": 9, "epoch_s": 600.0},
            "its time was up after 3 of 9 epochs: training alone needs about 1 h 30 min (--timeout-min)",
        ),
        (
            {"epochs_done": 3, "epochs": 9, "epoch_s": 600.0, "used_s": 2400.0},
            "its time was up: 3 of 9 epochs took 40 min, the whole trial needs about 2 h 00 min (--timeout-min)",
        ),
    ],
)
def test_a_timeouts_advice_by_what_is_known(known: dict[str, Any], advice: str) -> None:
    assert diagnose(Evidence(state("running"), job=job("TIMEOUT"), **known)).advice == advice


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """A trial whose job on Slurm wrote the logs of two ranks, at 10,000 s."""
    trial = sweep_of(tmp_path / "runs" / "lab", 1).trials[0]
    logs = tmp_path / "runs" / "lab" / "logs"
    logs.mkdir()
    for rank, text in enumerate(
        [START + "of an earlier start\n" + START + EPOCH, START + raised(KEY_ERROR) + OOM_KILL]
    ):
        (logs / f"12_0_{rank}_log.out").write_text(text)
        os.utime(logs / f"12_0_{rank}_log.out", (9_000 + 1_000 * rank, 9_000 + 1_000 * rank))
    return trial


def last_job(trial: Trial, own: TrialState, **more: Any) -> LastJob:
    log = trial.folder.parents[1] / "logs" / "12_0_0_log.out"
    submission = Submission(trial.id, "12_0", more.pop("cluster", "slurm"), str(log))
    if own.job_id:
        trial.write_state(own)
        path = trial.folder / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": own.time}))
    return LastJob(trial, submission, more.pop("job", job("TIMEOUT")), own, more.pop("row", {}), **more)


def test_the_ends_of_all_ranks_logs_and_the_progress_are_gathered(trial: Trial) -> None:
    own = TrialState("running", host="node5", job_id="12_0", time=4_000.0)
    found = gather(last_job(trial, own, row={"epoch": 3, "perf/seconds": 60.0}))
    assert found == Evidence(
        state=own, host="node5", job=job("TIMEOUT"), logs=(START + EPOCH, START + raised(KEY_ERROR) + OOM_KILL),
        epochs_done=3, epochs=10, epoch_s=60.0, used_s=6_000.0, sweep=str(trial.folder.parents[1]),
    )  # fmt: skip
    assert gather(last_job(trial, replace(own, host=""))).host == "node1"
    assert gather(last_job(trial, replace(own, host=""), job=None)).host == ""
    assert gather(last_job(trial, own)).epochs_done == 0


@pytest.mark.parametrize(
    ("changed", "used_s"),
    [
        ({"time": 9_999.5}, 0.5),
        ({"time": 10_000.0}, None),
        ({"time": 10_001.0}, None),
        ({"restarts": 1}, None),
        ({"status": "interrupted"}, None),
    ],
)
def test_the_time_of_a_trial_is_known_while_its_first_start_runs(
    trial: Trial, changed: dict[str, Any], used_s: float | None
) -> None:
    own = TrialState("running", job_id="12_0", time=4_000.0)
    assert gather(last_job(trial, replace(own, **changed))).used_s == used_s


def test_a_job_that_others_shared_says_nothing_of_a_trial_that_it_never_began(trial: Trial) -> None:
    found = gather(last_job(trial, TrialState(), shared=True))
    assert (found.logs, found.waited, found.log_is_missing, found.used_s) == ((), True, False, None)
    alone = gather(last_job(trial, TrialState()))
    assert (len(alone.logs), alone.waited) == (2, False)
    began = gather(last_job(trial, TrialState("running", job_id="12_0"), shared=True))
    assert (len(began.logs), began.waited) == (2, False)
    for path in (trial.folder.parents[1] / "logs").iterdir():
        path.unlink()
    assert gather(last_job(trial, TrialState())).log_is_missing
    assert not gather(last_job(trial, TrialState(), cluster="local")).log_is_missing


def test_a_worker_has_its_own_log_and_what_slurm_says_in_that_of_its_job(trial: Trial) -> None:
    own = TrialState("running", job_id="12_0", slot=1, at_once=2)
    first = trial.folder.parents[1] / "logs" / "12_0_0_log.out"
    first.write_text(START + EPOCH + OOM_KILL)
    assert gather(last_job(trial, own, shared=True)).logs == (START + raised(KEY_ERROR) + OOM_KILL, OOM_KILL.strip())
