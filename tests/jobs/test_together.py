"""Trials that share a job and train side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from jobs.logs import main as logs
from jobs.node.workers import Order
from jobs.runs.launch import Launch
from jobs.runs.log_files import START_OF_ATTEMPT, last_attempt, rank_logs
from jobs.runs.trial import Sweep, Trial
from jobs.state.processes import parent_of
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.attempts import read_attempts
from shards.command import run_command
from slurm.rehearsal.cluster import Cluster
from slurm.resources import Resources
from tests.jobs.recovery.test_recovery import numbers, sweep_of

REPOSITORY = Path(__file__).parents[2]
TWO = ["--trials-per-job", "4", "--trials-at-once", "2", "--axis", "model.arch=unet"]
ON_SLURM = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "2", "--mem-gb", "2", "--timeout-min", "20"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def launch(flags: list[str], tmp_path: Path, wait_for: Callable) -> tuple[subprocess.Popen[str], Sweep]:
    """jobs/sweep.py beside this process, once two trials are in training."""
    command = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), *flags]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: (tmp_path / "runs" / "lab" / "sweep.json").exists())
    sweep = sweep_of(tmp_path)
    wait_for(lambda: len(running(sweep)) == 2)
    return launcher, sweep


def running(sweep: Sweep) -> list[Trial]:
    """Those that are in training, two of them if all is well."""
    return [t for t in sweep.trials if t.state().status == "running" and len(t.metrics()) >= 2 and not t.result()]


@pytest.mark.slow
def test_two_at_once_end_with_the_numbers_of_one_by_one(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*tiny_sweep, "--cluster", "local", "--axis", "train.seed=0,1,2,3"]
    assert run_command(main, [*flags, *TWO, "--name", "two"]) == 0
    # two jobs at a time: as many threads for each trial, or the numbers would differ in their last bits
    assert run_command(main, [*flags, "--axis", "model.arch=unet", "--name", "one", "--max-parallel", "2"]) == 0
    two, one = sweep_of(tmp_path, "two"), sweep_of(tmp_path, "one")
    assert [numbers(trial) for trial in two.trials] == [numbers(trial) for trial in one.trials]
    assert len({submission.job_id for submission in two.submissions().values()}) == 1

    begun = sorted((read_attempts(trial.folder)[0].time, trial.state().time) for trial in two.trials)
    assert any(after[0] < before[1] for before, after in pairwise(begun))  # one began before another had ended
    assert {trial.state().slot for trial in two.trials} == {1, 2}
    for trial in two.trials:
        capsys.readouterr()
        assert run_command(logs, ["two", trial.id, "--lines", "0", "--runs-dir", str(tmp_path / "runs")]) == 0
        assert f"as worker {trial.state().slot} of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_trial_does_not_affect_the_others(tiny_sweep: list[str], tmp_path: Path) -> None:
    flags = [*tiny_sweep, "--cluster", "local", *TWO, "--axis", "optim.lr=1e30,1e-3,2e-3"]
    assert run_command(main, flags) == 3
    rows = trial_statuses(sweep_of(tmp_path))
    assert [row.status for row in rows] == ["failed", "done", "done"]
    assert rows[0].verdict
    assert rows[0].verdict.cause == "nan"


@pytest.mark.slow
def test_one_worker_is_killed_and_the_other_does_the_rest(
    tiny_sweep: list[str], tmp_path: Path, wait_for: Callable
) -> None:
    flags = [*tiny_sweep, "--cluster", "local", *TWO, "--axis", "train.seed=0,1,2", "--set", "train.epochs=12"]
    launcher, sweep = launch(flags, tmp_path, wait_for)
    victim = running(sweep)[0]
    os.kill(victim.state().pid, signal.SIGKILL)
    wait_for(lambda: {row.trial.id: row.status for row in trial_statuses(sweep)}[victim.id] == "interrupted")
    assert launcher.communicate(timeout=120)
    assert launcher.returncode == 3
    rows = {row.trial.id: row for row in trial_statuses(sweep)}
    assert sorted(row.status for row in rows.values()) == ["done", "done", "interrupted"]
    verdict = rows[victim.id].verdict
    assert verdict
    assert verdict.cause == "killed"
    assert run_command(main, flags) == 0
    assert len(read_attempts(victim.folder)) == 2


@pytest.mark.slow
def test_workers_save_and_end_when_their_job_is_killed(
    tiny_sweep: list[str], tmp_path: Path, wait_for: Callable
) -> None:
    flags = [*tiny_sweep, "--cluster", "local", *TWO, "--axis", "train.seed=0,1,2", "--set", "train.epochs=400"]
    launcher, sweep = launch(flags, tmp_path, wait_for)
    trials = running(sweep)
    job = parent_of(trials[0].state().pid)
    assert job == parent_of(trials[1].state().pid)
    os.kill(job, signal.SIGKILL)
    assert launcher.communicate(timeout=120)
    wait_for(lambda: [trial.state().status for trial in trials] == ["interrupted"] * 2)


@pytest.mark.slurm
@pytest.mark.slow
def test_an_array_of_jobs_of_two_at_once(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable
) -> None:
    flags = [*tiny_sweep, *ON_SLURM, "--axis", "model.arch=unet", "--axis", "train.seed=0,1,2"]
    assert run_command(main, [*flags, "--trials-per-job", "2", "--trials-at-once", "2"]) == 0
    sweep = sweep_of(tmp_path)
    wait_for(lambda: all(trial.result() for trial in sweep.trials))
    assert sorted(trial.state().at_once for trial in sweep.trials) == [1, 2, 2]
    submissions = sweep.submissions()
    for trial in sweep.trials:
        (log,) = rank_logs(trial, submissions[trial.id])
        assert log.name == f"{submissions[trial.id].job_id}_{trial.state().slot}_log.out"
        assert "as worker" in log.read_text()


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_a_job_of_two_at_once_that_is_requeued(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable
) -> None:
    """USR2, as ahead of the time limit: both save, Slurm starts the job again, and the numbers are the same."""
    flags = [*tiny_sweep, *ON_SLURM, *TWO, "--axis", "train.seed=0,1,2", "--set", "train.epochs=12"]
    flags += ["--set", "train.log_every=1", "--set", "train.batch_size=2"]
    assert run_command(main, [*flags, "--name", "stopped"]) == 0
    sweep = sweep_of(tmp_path, "stopped")
    wait_for(lambda: len(running(sweep)) == 2)
    rows = trial_statuses(sweep)
    assert [row.status for row in rows].count("running") == 2
    assert len({row.log for row in rows if row.status == "running"}) == 2
    (job_id,) = {submission.job_id for submission in sweep.submissions().values()}
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True, timeout=30)
    wait_for(lambda: all(trial.result() for trial in sweep.trials))
    assert sorted(len(read_attempts(trial.folder)) for trial in sweep.trials) == [1, 2, 2]
    first_log = (sweep.folder / "logs" / f"{job_id}_1_log.out").read_text()
    assert first_log.count(START_OF_ATTEMPT) == 2
    assert "resumed" in last_attempt(first_log)

    assert run_command(main, [*flags, "--name", "calm"]) == 0
    calm = sweep_of(tmp_path, "calm")
    wait_for(lambda: all(trial.result() for trial in calm.trials))
    assert [numbers(trial) for trial in sweep.trials] == [numbers(trial) for trial in calm.trials]


INTERRUPTED_WORKER = """
import atexit, sys
from jobs.node import worker
from shards.command import Interrupted

def run_all(task, folders, environment, slot):
    print("a last word")
    raise Interrupted("saved", REQUEUE)

atexit.register(print, "torn down")
worker.TrialTask.run_all = run_all
sys.exit(worker.main())
"""


@pytest.mark.parametrize(("requeue", "code"), [(False, 75), (True, 76)])
def test_a_worker_whose_trial_is_saved_leaves_without_a_teardown(requeue: bool, code: int) -> None:
    script = INTERRUPTED_WORKER.replace("REQUEUE", str(requeue))
    environ = {
        **os.environ,
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "9",
        "SUBMITIT_LOCAL_GLOBALRANK": "0",
    }
    environ |= {"SUBMITIT_LOCAL_LOCALRANK": "0", "SUBMITIT_LOCAL_NTASKS": "1"}
    environ.pop("PYTHONUNBUFFERED", None)
    order = json.dumps(asdict(Order(1, 1, 2, 0, ())))
    done = subprocess.run(
        [sys.executable, "-c", script], input=order + "\n", env=environ, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "interrupted: saved" in done.stderr
    assert done.stdout == "a last word\n"  # and not `torn down`


def test_what_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="--trials-at-once 4: a job has no more than --trials-per-job 2"):
        Launch("slurm", Resources(), 0, 2, 4)
    with pytest.raises(ValueError, match="a job of one process, and this one has 4"):
        Launch("slurm", Resources(nodes=2, gpus_per_node=2), 0, 4, 2)
    with pytest.raises(ValueError, match="one process; take --cluster local"):
        Launch("debug", Resources(), 0, 4, 2)
