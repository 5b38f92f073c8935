"""Trials that lose their place to a job of higher priority, on a Slurm that sends TERM and then waits (GraceTime)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Trial
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.attempts import read_attempts
from shards.command import run_command
from slurm.rehearsal.cluster import Cluster

PREEMPTIBLE = ["--partition", "low", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "20"]
PREEMPTIBLE += ["--axis", "model.arch=unet", "--set", "train.log_every=1"]


@pytest.fixture
def slurm(preempting_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """slurm("squeue", "--me"): what a command answers; this process's own commands talk to the cluster too."""
    for name, value in {**preempting_cluster.env, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)

    def call(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    yield call
    call("scancel", "--me")


def launch(flags: list[str], tmp_path: Path, wait_for: Callable) -> tuple[Trial, str]:
    """A trial in training, and its job."""
    assert run_command(main, [*flags, *PREEMPTIBLE]) == 0
    sweep = load_sweep(tmp_path / "runs" / "lab")
    (trial,) = sweep.trials
    wait_for(lambda: len(trial.metrics()) >= 2)
    return trial, sweep.submissions()[trial.id].job_id


def times(slurm: Callable[..., str], job_id: str, *fields: str) -> list[datetime]:
    columns = ",".join(f"{field}:30" for field in fields)
    for _ in range(120):  # Slurm has not noted a time as long as it says N/A
        line = slurm("squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--Format={columns}")
        if "N/A" not in line:
            break
        time.sleep(0.5)
    return [datetime.fromisoformat(word) for word in line.split()]


def state_of(slurm: Callable[..., str], job_id: str) -> str:
    return slurm("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T")


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("grace_s", "mode", "ranks"), [(0, "requeue", 1), (30, "requeue", 1), (300, "requeue", 2), (0, "cancel", 1)]
)
def test_a_preempted_trial_makes_room_at_once_and_comes_back(
    tiny_sweep: list[str], tmp_path: Path, slurm: Callable[..., str], wait_for: Callable, grace_s: int, mode: str,
    ranks: int,
) -> None:  # fmt: skip
    slurm("scontrol", "update", "partition=low", f"gracetime={grace_s}", f"preemptmode={mode}")
    flags = [*tiny_sweep, "--set", "train.epochs=25", "--tasks-per-node", str(ranks)]
    trial, job_id = launch(flags, tmp_path, wait_for)
    urgent = slurm("sbatch", "--parsable", "--partition=gpu", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: trial.state().status == "interrupted")
    if grace_s:
        (preempted,) = times(slurm, job_id, "PreemptTime")
        wait_for(lambda: state_of(slurm, urgent) != "PENDING")
        (started,) = times(slurm, urgent, "StartTime")
        assert (started - preempted).total_seconds() < min(grace_s, 20)
    wait_for(lambda: len(read_attempts(trial.folder)) == 2)
    wait_for(lambda: trial.result())
    first, second = read_attempts(trial.folder)
    assert first.first_step == 0
    assert second.first_step > 2 * 2  # of two steps an epoch
    assert [row["epoch"] for row in trial.metrics()] == list(range(1, 26))
    assert [row.status for row in trial_statuses(load_sweep(tmp_path / "runs" / "lab"))] == ["done"]


@pytest.mark.slurm
@pytest.mark.slow
def test_trials_at_once_of_a_preempted_job_make_room_at_once_and_come_back(
    tiny_sweep: list[str], tmp_path: Path, slurm: Callable[..., str], wait_for: Callable
) -> None:
    """The job leaves when the last of its workers has."""
    slurm("scontrol", "update", "partition=low", "gracetime=300", "preemptmode=requeue")
    flags = [*tiny_sweep, *PREEMPTIBLE, "--axis", "train.seed=0,1", "--set", "train.epochs=25"]
    assert run_command(main, [*flags, "--trials-per-job", "2", "--trials-at-once", "2"]) == 0
    sweep = load_sweep(tmp_path / "runs" / "lab")
    assert len({submission.job_id for submission in sweep.submissions().values()}) == 1
    wait_for(lambda: all(len(trial.metrics()) >= 2 for trial in sweep.trials))
    urgent = slurm("sbatch", "--parsable", "--partition=gpu", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: [trial.state().cause for trial in sweep.trials] == ["preempted"] * 2)
    wait_for(lambda: state_of(slurm, urgent) != "PENDING")
    # Slurm forgets when it preempted a job as soon as that is back in the queue: the urgent job's own wait says as much
    submitted, started = times(slurm, urgent, "SubmitTime", "StartTime")
    assert (started - submitted).total_seconds() < 30
    wait_for(lambda: all(len(read_attempts(trial.folder)) == 2 for trial in sweep.trials))
    wait_for(lambda: all(trial.result() for trial in sweep.trials))


SLOW_START = """
import os, pathlib, sys, time
if any("submitit" in word for word in sys.orig_argv) and "SLURM_RESTART_COUNT" not in os.environ:
    (pathlib.Path(__file__).parent / "starts").touch()
    time.sleep(60)
"""


@pytest.mark.slurm
@pytest.mark.slow
def test_a_trial_that_is_preempted_while_python_starts_comes_back(
    tiny_sweep: list[str], tmp_path: Path, slurm: Callable[..., str], wait_for: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """TERM ends a Python that does not listen yet, and Slurm would count that as the job's own failure."""
    slurm("scontrol", "update", "partition=low", "gracetime=300", "preemptmode=requeue")
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_command(main, [*tiny_sweep, *PREEMPTIBLE]) == 0
    sweep = load_sweep(tmp_path / "runs" / "lab")
    (trial,) = sweep.trials
    wait_for((tmp_path / "starts").exists)
    urgent = slurm("sbatch", "--parsable", "--partition=gpu", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: state_of(slurm, urgent) not in ("", "PENDING"))
    wait_for(lambda: trial.result())
    assert len(read_attempts(trial.folder)) == 1
    assert "before it could listen to signals: back into" in Path(sweep.submissions()[trial.id].log).read_text()


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_trial_whose_time_is_up_while_python_starts_comes_back(
    tiny_sweep: list[str], tmp_path: Path, slurm: Callable[..., str], wait_for: Callable,
    monkeypatch: pytest.MonkeyPatch, ranks: int,
) -> None:  # fmt: skip
    """USR2, as ahead of the time limit, ends a Python that does not listen yet."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_command(main, [*tiny_sweep, *PREEMPTIBLE, "--tasks-per-node", str(ranks)]) == 0
    sweep = load_sweep(tmp_path / "runs" / "lab")
    (trial,) = sweep.trials
    job = sweep.submissions()[trial.id]
    wait_for((tmp_path / "starts").exists)
    slurm("scancel", "--signal=USR2", job.job_id)
    wait_for(lambda: trial.result())
    assert len(read_attempts(trial.folder)) == 1
    assert "before it could listen to signals: back into the queue" in Path(job.log).read_text()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_cancelled_trial_leaves_at_once_and_does_not_come_back(
    tiny_sweep: list[str], tmp_path: Path, slurm: Callable[..., str], wait_for: Callable
) -> None:
    """USR2 came before, as ahead of the time limit: a requeue would still bring it back."""
    slurm("scontrol", "update", "partition=low", "gracetime=300", "preemptmode=requeue")
    trial, job_id = launch([*tiny_sweep, "--set", "train.epochs=250"], tmp_path, wait_for)
    slurm("scancel", "--signal=USR2", job_id)
    slurm("scancel", job_id)
    wait_for(lambda: state_of(slurm, job_id) == "CANCELLED")
    (row,) = trial_statuses(load_sweep(tmp_path / "runs" / "lab"))
    assert (row.status, row.cause) == ("interrupted", "cancelled")
    assert len(read_attempts(trial.folder)) == 1


@pytest.mark.slurm
@pytest.mark.slow
def test_a_preempted_trial_that_may_not_be_requeued_says_so(
    tiny_sweep: list[str], tmp_path: Path, slurm: Callable[..., str], wait_for: Callable
) -> None:
    slurm("scontrol", "update", "partition=low", "gracetime=300", "preemptmode=requeue")
    flags = [*tiny_sweep, "--set", "train.epochs=250", "--no-requeue"]
    _, job_id = launch(flags, tmp_path, wait_for)
    slurm("sbatch", "--partition=gpu", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: state_of(slurm, job_id) == "FAILED")
    (row,) = trial_statuses(load_sweep(tmp_path / "runs" / "lab"))
    assert (row.status, row.cause) == ("interrupted", "preempted")
