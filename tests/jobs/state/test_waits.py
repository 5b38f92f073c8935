"""Jobs that do not start by themselves: what status says of each, and what retry releases."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.launch.submit import submit_trials
from jobs.retry import main as retry_main
from jobs.runs.launch import Launch
from jobs.runs.trial import Submission, Sweep
from jobs.state import waits
from jobs.state.slurm_states import forget
from jobs.state.trial_status import TrialStatus, trial_status, trial_statuses
from jobs.state.waits import IDS_PER_CALL, release, wait_of
from jobs.status import main as status_main
from shards.command import run_command
from slurm.cluster import JobState
from slurm.rehearsal.cluster import Cluster, can_unshare, rehearse
from slurm.rehearsal.settings import Site
from slurm.resources import Resources
from tests.jobs.written_trials import on_slurm, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "my lab", 6)


REASONS = {
    "failed_launch": """launch failed requeued held; launch_failed_requeued_held; JobHoldMaxRequeue
        user env retrieval failed requeued held; job requeued in held state""",
    "held": "JobHeldUser; JobHeldAdmin",
    "never": """PartitionTimeLimit; PartitionNodeLimit; PartitionConfig; BadConstraints; DependencyNeverSatisfied
        AccountNotAllowed; QOSNotAllowed; InvalidAccount; InvalidQOS; ReservationDeleted
        AssocMaxWallDurationPerJobLimit; QOSMaxWallDurationPerJobLimit; QOSMaxCpuPerJobLimit; QOSMaxGRESPerJob
        AssocMaxNodePerJobLimit; QOSMaxMemoryPerNode; QOSMinGRES; QOSMinCpuNotSatisfied""",
    "blocked": """AssocGrpCpuLimit; AssocGrpGRES; AssocGrpCPUMinutesLimit; AssocGrpBillingRunMinutes; QOSGrpCpuLimit
        AssocMaxJobsLimit; QOSMaxJobsPerUserLimit; QOSMaxGRESPerUser; AssociationJobLimit; QOSResourceLimit
        PartitionDown; PartitionInactive; Licenses; ReqNodeNotAvail, UnavailableNodes:node[1-2]
        (ReqNodeNotAvail, Reserved for maintenance)
        Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions""",
    "": "Priority; Resources; JobArrayTaskLimit; Dependency; BeginTime; Cleaning; Prolog; None",
}


@pytest.mark.parametrize("kind", REASONS)
def test_reasons_of_squeue(kind: str) -> None:
    for reason in re.split(r"; |\n +", REASONS[kind]):
        wait = wait_of(JobState("PENDING", reason, "", "squeue"))
        assert (wait.kind if wait else "") == kind, reason
    held = wait_of(JobState("REQUEUE_HOLD", "", "", "squeue"))
    assert held is not None
    assert held.kind == "failed_launch"


def test_a_wait_says_slurms_reason_or_the_state_that_holds_the_job() -> None:
    """Reasons have spaces or underscores, by Slurm's version."""
    for reason, shown in (("", "SPECIAL_EXIT"), ("job_requeued_in_held_state", "job_requeued_in_held_state")):
        wait = wait_of(JobState("SPECIAL_EXIT", reason, "", "squeue"))
        assert wait is not None
        assert (wait.kind, wait.reason, wait.is_held) == ("failed_launch", shown, True)
        assert wait.advice.startswith("a start failed before the trial began")
    blocked = wait_of(JobState("PENDING", "QOSGrpCpuLimit", "", "squeue"))
    assert blocked is not None
    assert (blocked.kind, blocked.is_held) == ("blocked", False)


def test_jobs_are_released_once_each_and_in_calls_that_are_not_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(waits.patience, "call", calls.append)
    ids = [f"7_{number}" for number in range(IDS_PER_CALL + 1)]
    release([*ids, *ids])
    assert calls == [["scontrol", "release", ",".join(ids[:-1])], ["scontrol", "release", ids[-1]]]
    release([])
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(), "no scontrol on PATH: go to a login node of the cluster"),
        (subprocess.CalledProcessError(1, "scontrol", "out", "scontrol: error: Access denied\n"),
         "scontrol release: Access denied"),
        (subprocess.CalledProcessError(1, "scontrol", "Invalid job id\n", ""), "scontrol release: Invalid job id"),
    ],
)  # fmt: skip
def test_what_slurm_does_not_release_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def call(command: list[str]) -> None:
        raise error

    monkeypatch.setattr(waits.patience, "call", call)
    with pytest.raises(OSError) as failed:  # noqa: PT011 - its whole text follows
        release(["7"])
    assert str(failed.value) == told


def test_a_job_that_slurm_ends_for_its_constraints_is_no_failed_launch(sweep: Sweep) -> None:
    row = trial_status(sweep.trials[0], *on_slurm(sweep.trials[0], "FAILED", "BadConstraints"))
    assert (row.status, row.cause) == ("failed", "unplaceable")
    assert row.verdict is not None
    assert "--constraint" in row.verdict.advice
    assert not row.verdict.retryable


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """While this file is there, the prolog of each job fails."""
    return tmp_path / "no-launch"


@pytest.fixture
def site(slurm_daemons: None, tmp_path: Path, hold: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A site that queues what it cannot run, with a prolog that can fail."""
    prolog = tmp_path / "prolog"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {hold} ]\n")
    prolog.chmod(0o755)
    conf = {"EnforcePartLimits": "NO", "Prolog": str(prolog), "nodes.Features": "fast"}
    with rehearse(Site(nodes=1, cpus=4, gpus=0, conf=conf)) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        yield cluster


def call(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


def sbatch(*flags: str) -> str:
    return call("sbatch", "--parsable", "--output=/dev/null", "--mem=1", "--time=1", *flags, "--wrap", "sleep 60")


@pytest.mark.slow
@pytest.mark.slurm
def test_held_jobs_are_shown_and_released(
    site: Cluster, sweep: Sweep, hold: Path, wait_for: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed launch of two tasks, and a job that its user holds."""
    hold.touch()
    array = sbatch("--array=0-1")
    mine = sbatch("--hold")
    for trial, job_id in zip(sweep.trials, (f"{array}_0", f"{array}_1", mine), strict=False):
        sweep.add_submissions([Submission(trial.id, job_id, "slurm", "")])

    def reasons() -> list[str]:
        return [row.wait.reason if row.wait else "" for row in trial_statuses(sweep)[:3]]

    wait_for(lambda: reasons() == ["launch failed requeued held"] * 2 + ["JobHeldUser"])
    first, second, third = (trial.id for trial in sweep.trials[:3])
    forget(sweep.folder)
    assert run_command(status_main, [str(sweep.folder)]) == 0
    out = capsys.readouterr().out
    assert f"launch failed requeued held: 2 trials: {first}, {second}" in out
    assert f"next: python jobs/retry.py '{sweep.folder}' --failed" in out
    assert f"JobHeldUser: 1 trial: {third}" in out
    assert f"next: python jobs/retry.py '{sweep.folder}' --held" in out

    hold.unlink()
    call("scontrol", "update", "nodename=node1", "state=resume")
    assert run_command(retry_main, [str(sweep.folder), "--failed", "--dry-run"]) == 0
    assert "0 to submit, 0 not, 2 to release" in capsys.readouterr().out
    assert reasons()[0] == "launch failed requeued held"  # nothing was done
    assert run_command(retry_main, [str(sweep.folder), "--failed"]) == 0
    capsys.readouterr()
    assert run_command(status_main, [str(sweep.folder)]) == 0
    assert "launch failed" not in capsys.readouterr().out  # the answer of before is not shown
    assert reasons()[2] == "JobHeldUser"  # which the user meant
    wait_for(lambda: call("squeue", "-h", "--array", f"--jobs={array}", "--format=%T").split() == ["RUNNING"] * 2)
    assert run_command(retry_main, [str(sweep.folder), "--held"]) == 0
    wait_for(lambda: call("squeue", "-h", f"--jobs={mine}", "--format=%T") == "RUNNING")
    assert run_command(retry_main, [str(sweep.folder), "--held"]) == 2
    assert "none of these 6 trials is held" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.slurm
def test_jobs_that_never_start_are_shown_with_what_to_do(
    site: Cluster, sweep: Sweep, wait_for: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """A partition whose limit was lowered, a dependency that failed, and a feature that is gone."""
    failing = call("sbatch", "--parsable", "--output=/dev/null", "--time=1", "--wrap", "false")
    jobs = [sbatch(f"--dependency=afterok:{failing}")]
    jobs += [sbatch("--hold", "--constraint=fast")]
    wait_for(lambda: call("squeue", "-h", "--states=all", f"--jobs={failing}", "--format=%T") == "FAILED")
    call("scontrol", "update", "nodename=node1", "features=slow", "activefeatures=slow")
    call("scontrol", "release", jobs[1])
    call("scontrol", "update", "PartitionName=gpu", "MaxTime=5")
    jobs += [sbatch("--time=600")]
    for trial, job_id in zip(sweep.trials, jobs, strict=False):
        sweep.add_submissions([Submission(trial.id, job_id, "slurm", "")])

    def said() -> list[str]:
        rows: list[TrialStatus] = trial_statuses(sweep)[:3]
        return [row.wait.reason if row.wait else row.status for row in rows]

    wait_for(lambda: said() == ["DependencyNeverSatisfied", "BadConstraints", "PartitionTimeLimit"])
    first, second, third = (trial.id for trial in sweep.trials[:3])
    forget(sweep.folder)
    assert run_command(status_main, [str(sweep.folder), "--json"]) == 0
    waits = {wait["reason"]: wait for wait in json.loads(capsys.readouterr().out)["waits"]}
    assert {reason: (wait["kind"], wait["trials"]) for reason, wait in waits.items()} == {
        "DependencyNeverSatisfied": ("never", [first]),
        "BadConstraints": ("never", [second]),
        "PartitionTimeLimit": ("never", [third]),
    }
    assert run_command(status_main, [str(sweep.folder)]) == 0
    out = capsys.readouterr().out
    assert "its partition allows less time: cancel it and run the sweep again with a lower --timeout-min" in out
    assert f"next: python jobs/cancel.py '{sweep.folder}' {third}" in out
    assert run_command(retry_main, [str(sweep.folder), third]) == 2
    assert "PartitionTimeLimit: its partition allows less time" in capsys.readouterr().err


@pytest.mark.slurm
def test_a_folder_that_the_node_does_not_see(
    slurm_daemons: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable
) -> None:
    """The node has an empty disk where the sweep lies, as it would have its own /tmp."""
    if not can_unshare():
        pytest.skip("nodes with a file system of their own need root")
    sweep = sweep_of(tmp_path / "here" / "runs" / "lab", 1)
    with rehearse(Site(nodes=1, cpus=1, gpus=0)) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        pid = (cluster.root / "run" / "node.node1.pid").read_text().split()[0]
        command = ["nsenter", "--target", pid, "--mount", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "here")]
        subprocess.run(command, check=True, timeout=30)
        launch = Launch("slurm", Resources(gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5), 0, 1)
        submit_trials(launch, sweep, sweep.trials)
        wait_for(lambda: trial_statuses(sweep)[0].status == "failed")
        (row,) = trial_statuses(sweep)
    assert row.cause == "unseen_folder"
    assert "--runs-dir on a file system that all nodes share" in row.note
