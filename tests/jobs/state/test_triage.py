"""Why a trial ended, judged by its own word, by Slurm's and by its logs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import TrialState, read_state
from jobs.state.causes import ADVICE, RETRYABLE
from jobs.state.liveness import read_last_row
from jobs.state.triage import Diagnosis, Evidence, LastJob, diagnose, gather
from petseg.run_folder.layout import write_metrics
from shards.cause import Cause
from slurm.cluster import JobState
from tests.jobs.job_logs import CANCELLED_STEP, CUDA_OOM, EPOCH, OOM_KILL, PEER, START, raised


def job(state: str, exit_code: str = "", source: str = "squeue") -> JobState:
    return JobState(state, "", "node1", source, exit_code)


def failed(error: str, cause: Cause | None = None) -> TrialState:
    return TrialState("failed", error=error, cause=cause, job_id="12_0")


def diagnose_trial(trial: Trial, submission: Submission, state: JobState | None, shared: bool = False) -> Diagnosis:
    written = trial.state().of_job(submission.job_id)
    return diagnose(gather(LastJob(trial, submission, state, written, read_last_row(trial.folder), shared)))


# (cause, said, the trial's own error, job, log of rank 0)
CASES = [
    ("gpu_memory", "failed", CUDA_OOM, job("FAILED"), START + EPOCH + raised(CUDA_OOM)),
    ("gpu_memory", "running", "", job("FAILED"), START + raised("RuntimeError: CUDA error: out of memory")),
    ("gpu_memory", "running", "", None, START + raised("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    ("host_memory", "running", "", job("OUT_OF_MEMORY"), START + EPOCH + OOM_KILL),
    ("host_memory", "running", "", job("FAILED"), START + EPOCH + OOM_KILL),
    ("host_memory", "failed", PEER, job("OUT_OF_MEMORY"), START + raised(PEER) + OOM_KILL),
    ("host_memory", "failed", "MemoryError", None, START + raised("MemoryError")),
    (
        "host_memory",
        "failed",
        "RuntimeError: DataLoader worker (pid 4021) is killed by signal: Killed. ",
        job("FAILED"),
        "",
    ),
    (
        "host_memory",
        "failed",
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
        ),
        None,
        "",
    ),
    ("node_failure", "running", "", job("NODE_FAIL"), START + EPOCH),
    (
        "node_failure",
        "running",
        "",
        job("FAILED"),
        START + "slurmstepd: error: *** JOB 12 ON node1 CANCELLED AT 2026-03-01T09:40:00 DUE TO NODE FAILURE, SEE "
        "SLURMCTLD LOG FOR DETAILS ***\n",
    ),
    (
        "node_failure",
        "failed",
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        job("FAILED"),
        START,
    ),
    ("node_failure", "failed", "OSError: [Errno 116] Stale file handle: '/data/train-0000.tar'", None, START),
    ("preempted", "running", "", job("PREEMPTED", source="sacct"), START + EPOCH),
    ("preempted", "interrupted", "", job("PREEMPTED", source="sacct"), START + EPOCH),
    ("timeout", "running", "", job("TIMEOUT"), START + EPOCH),
    (
        "timeout",
        "running",
        "",
        job("MISSING"),
        START
        + EPOCH
        + "slurmstepd: error: *** JOB 12 ON node1 CANCELLED AT 2026-03-01T13:30:00 DUE TO TIME LIMIT ***\n",
    ),
    (
        "disk_full",
        "failed",
        (
            "OSError: [Errno 28] No space left on device: a checkpoint of 124,000,000 bytes does not fit into "
            "runs/lab/trials/0123456789/checkpoints (0 bytes are free)"
        ),
        job("FAILED"),
        START,
    ),
    ("disk_full", "failed", "OSError: [Errno 122] Disk quota exceeded", None, START),
    (
        "disk_full",
        "failed",
        (
            "safetensors._safetensors_rust.SafetensorError: Error while serializing: I/O error: Os { code: 28, kind: "
            'StorageFull, message: "No space left on device" }'
        ),
        None,
        START,
    ),
    (
        "launch",
        "",
        "",
        job("FAILED"),
        (
            "Traceback (most recent call last):\n"
            '  File "<frozen runpy>", line 189, in _run_module_as_main\n'
            '  File "<frozen runpy>", line 112, in _get_module_details\n'
            "ModuleNotFoundError: No module named 'submitit'\n"
            "srun: error: node1: task 0: Exited with exit code 1\n"
        ),
    ),
    ("launch", "failed", "ImportError: libcudart.so.12: cannot open shared object file", job("FAILED"), START),
    ("launch", "", "", job("FAILED"), "/usr/bin/python3: No module named submitit\n"),
    (
        "launch",
        "",
        "",
        job("FAILED"),
        (
            "slurmstepd: error: execve(): /home/me/.venv/bin/python: No such file or directory\n"
            "srun: error: node1: task 0: Exited with exit code 2\n"
        ),
    ),
    (
        "launch",
        "failed",
        (
            "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
            "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
        ),
        job("FAILED"),
        START,
    ),
    ("launch", "", "", None, START + raised("_pickle.UnpicklingError: pickle data was truncated")),
    ("code", "failed", "KeyError: 'dice'", job("FAILED"), START + EPOCH + raised("KeyError: 'dice'")),
    ("code", "running", "", job("FAILED"), START + EPOCH + raised("KeyError: 'dice'") + CANCELLED_STEP),
    ("cancelled", "running", "", job("CANCELLED"), START + EPOCH + CANCELLED_STEP),
    (
        "cancelled",
        "running",
        "",
        job("MISSING"),
        START + "slurmstepd-node1: error: *** JOB 12 ON node1 CANCELLED AT 2026-03-01T09:40:00 ***\n",
    ),
    ("cancelled", "", "", job("CANCELLED", source="sacct"), ""),
    ("cancelled", "interrupted", "", None, START + EPOCH),
    ("killed", "running", "", job("FAILED", "0:9", "sacct"), START + EPOCH),
    ("killed", "running", "", job("FAILED"), START + EPOCH + "srun: error: node1: task 0: Killed\n"),
    ("killed", "running", "", None, START + EPOCH),
    ("unknown", "running", "", job("MISSING"), START + EPOCH),
    ("unknown", "", "", job("MISSING"), ""),
    ("unknown", "failed", PEER, job("FAILED"), START + raised(PEER)),
]


@pytest.mark.parametrize(("cause", "said", "error", "state", "log"), CASES)
def test_causes(cause: str, said: str, error: str, state: JobState | None, log: str) -> None:
    own = TrialState(said, error=error, host="node1", job_id="12_0" if said else "")
    verdict = diagnose(Evidence(own, host="node1", job=state, logs=(log,), sweep="runs/lab"))
    assert verdict.cause == cause
    assert verdict.retryable == (cause != "code")
    assert "{" not in verdict.advice


def test_every_cause_has_advice_and_a_case() -> None:
    assert RETRYABLE.keys() == ADVICE.keys()
    named = {Cause.NAN, Cause.DATA, Cause.STOPPED, Cause.NEVER_BEGAN, Cause.UNPLACEABLE, Cause.UNSEEN_FOLDER}
    assert RETRYABLE.keys() == {case[0] for case in CASES} | named == set(Cause)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.UNKNOWN])
def test_a_named_cause_wins_over_the_message(cause: Cause) -> None:
    """Its words, and those of other ranks, may be anybody's."""
    own = failed(CUDA_OOM, cause)
    assert diagnose(Evidence(own, logs=(START + raised(CUDA_OOM),), job=job("OUT_OF_MEMORY"))).cause is cause


def test_a_trial_that_never_began_names_the_end_of_its_job_if_that_is_known() -> None:
    evidence = Evidence(waited=True, job=job("FAILED"))
    verdict = diagnose(evidence)
    assert (verdict.cause, verdict.retryable) == ("never_began", True)
    assert "before its turn came" in verdict.advice
    assert diagnose(replace(evidence, job=None)).cause == "never_began"  # a local job
    assert diagnose(replace(evidence, job=job("NODE_FAIL"))).cause == "node_failure"
    assert diagnose(replace(evidence, job=job("CANCELLED"))).cause == "cancelled"


def test_a_job_that_could_not_open_its_log_did_not_see_the_folder(tmp_path: Path) -> None:
    trial = Trial("0123456789", {}, tmp_path / "lab" / "trials" / "0123456789")
    log = tmp_path / "lab" / "logs" / "12_0_0_log.out"
    submission = Submission(trial.id, "12_0", "slurm", str(log))
    for shared in (False, True):
        verdict = diagnose_trial(trial, submission, job("FAILED"), shared)
        assert (verdict.cause, verdict.retryable) == ("unseen_folder", False)
        assert f"in {tmp_path / 'lab'}: nodes do not see that folder" in verdict.advice
    assert diagnose_trial(trial, submission, job("CANCELLED")).cause == "cancelled"
    assert diagnose_trial(trial, submission, job("MISSING")).cause == "unknown"
    assert diagnose_trial(trial, replace(submission, cluster="local"), None).cause == "unknown"
    log.parent.mkdir(parents=True)
    log.write_text("")
    assert diagnose_trial(trial, submission, job("FAILED")).cause == "launch"
    log.unlink()
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))
    assert diagnose_trial(trial, submission, job("FAILED", "0:9", "sacct")).cause == "killed"


def test_a_state_of_an_earlier_version_names_no_cause(tmp_path: Path) -> None:
    """What such a version itself said is not read for one: only other programs' words are."""
    folder = tmp_path / "lab" / "trials" / "0123456789"
    folder.mkdir(parents=True)
    for error, cause in (
        ("shards.command.Failure: the loss is not finite in steps 0-9 of epoch 1", Cause.CODE),
        (CUDA_OOM, Cause.GPU_MEMORY),
    ):
        content = {"status": "failed", "host": "node1", "job_id": "12_0", "pid": 7, "restarts": 0, "error": error}
        (folder / "state.json").write_text(json.dumps(content | {"time": 1.5}))
        state = read_state(folder)
        assert (state.error, state.cause, state.time) == (error, None, 1.5)
        assert diagnose(Evidence(state)).cause is cause


def test_a_trial_stopped_with_its_sweep_has_the_cause_stopped() -> None:
    verdict = diagnose(Evidence(TrialState("interrupted", cause=Cause.STOPPED)))
    assert (verdict.cause, verdict.retryable) == ("stopped", True)
    assert "the same command goes on" in verdict.advice


def test_the_noted_cause_of_an_interruption_holds_unless_the_job_was_cancelled_later() -> None:
    own = TrialState("interrupted", cause=Cause.PREEMPTED)
    evidence = Evidence(own, job=job("FAILED", "75:0"), logs=(START + EPOCH,))
    assert diagnose(evidence).cause == "preempted"
    assert diagnose(replace(evidence, state=replace(own, cause=None))).cause == "cancelled"
    assert diagnose(replace(evidence, job=job("CANCELLED"))).cause == "cancelled"


def test_a_lost_peer_does_not_hide_the_cause() -> None:
    ranks = (START + raised(PEER), START + raised(CUDA_OOM), START + raised(PEER))
    assert diagnose(Evidence(failed(PEER), job=job("FAILED"), logs=ranks)).cause == "gpu_memory"
    ranks = (START + raised(PEER), START + raised("KeyError: 'dice'"))
    verdict = diagnose(Evidence(failed(PEER), job=job("FAILED"), logs=ranks))
    assert (verdict.cause, verdict.signature) == ("code", "KeyError at petseg/train.py:141 in train_step")


def test_slurm_and_the_logs_explain_a_rank_that_reports_a_lost_peer() -> None:
    """Whatever words gloo, NCCL and the store had for it."""
    own = failed("petseg.run.peers.LostPeer: gone (DistNetworkError: Connection refused)", Cause.UNKNOWN)
    evidence = Evidence(own, logs=("",))
    assert diagnose(evidence).cause is Cause.UNKNOWN
    assert diagnose(replace(evidence, job=job("OUT_OF_MEMORY"))).cause is Cause.HOST_MEMORY
    assert diagnose(replace(evidence, logs=("", START + raised(CUDA_OOM)))).cause is Cause.GPU_MEMORY
    assert diagnose(replace(evidence, logs=("", START + raised("KeyError: 'dice'")))).cause is Cause.CODE


def test_code_is_known_by_its_exception_and_its_last_frame_of_ours() -> None:
    library = '  File "/home/me/petseg/.venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 9, in f\n'
    verdict = diagnose(Evidence(failed("x"), logs=(START + raised("RuntimeError: shapes 3, 4", library),)))
    assert verdict.signature == "RuntimeError at petseg/train.py:141 in train_step"
    assert verdict.traceback.startswith("Traceback (most recent call last):\n")
    assert verdict.traceback.endswith("\nRuntimeError: shapes 3, 4")
    other = diagnose(Evidence(failed("x"), logs=(START + raised("RuntimeError: shapes 5, 6", library),)))
    assert other.signature == verdict.signature


def test_failures_of_a_node_are_told_apart_by_its_name() -> None:
    verdict = diagnose(Evidence(TrialState("running"), host="node7", job=job("NODE_FAIL")))
    assert verdict.signature == "node_failure node7"
    assert "--exclude node7" in verdict.advice


def test_a_folder_is_diagnosed_by_its_last_job_only(tmp_path: Path) -> None:
    trial = Trial("0123456789", {}, tmp_path / "lab" / "trials" / "0123456789")
    logs = tmp_path / "lab" / "logs"
    logs.mkdir(parents=True)
    log = logs / "12_0_0_log.out"
    log.write_text(START + raised(CUDA_OOM))
    submission = Submission(trial.id, "12_0", "slurm", str(log))
    trial.write_state(TrialState("failed", error="KeyError: 'x'", host="node1", job_id="11"))  # of an earlier job
    assert diagnose_trial(trial, submission, job("FAILED")).cause == "gpu_memory"
    assert diagnose_trial(trial, submission, job("FAILED"), shared=True).cause == "never_began"
    trial.write_state(TrialState("running", host="node1", job_id="12_0", time=0))
    write_metrics([{"epoch": 2, "perf/seconds": 1800.0}], trial.folder)
    log.write_text(START + EPOCH)
    verdict = diagnose_trial(trial, submission, job("TIMEOUT"))
    assert verdict.cause == "timeout"
