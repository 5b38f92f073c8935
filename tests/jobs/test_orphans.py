"""A launcher that is killed while sbatch is on its way to Slurm leaves an array of jobs that nobody has noted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.cancel import main as cancel_main
from jobs.runs.trial import Sweep
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.attempts import read_attempts
from shards.command import run_command
from slurm.rehearsal.answers import Answer
from slurm.rehearsal.cluster import Cluster
from slurm.submission import short
from tests.jobs.disturbed_runs import sweep_of
from tests.jobs.faulty_checkout import REPOSITORY, wait_until

ON_SLURM = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "10"]
DELAY_S = 4.0


@pytest.fixture
def slow_sbatch(on_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    on_cluster.disturb(Answer("sbatch", delay_s=DELAY_S))
    yield on_cluster
    on_cluster.disturb()
    subprocess.run(["scancel", "--me"], check=True, timeout=60)


def kill_in_flight(flags: list[str], tmp_path: Path) -> tuple[Sweep, str]:
    """The sweep of a launcher that was killed when it had called sbatch, and its token."""
    command = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), *flags, *ON_SLURM]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        logs = tmp_path / "runs" / "lab" / "logs"
        wait_until(lambda: list(logs.glob(".submission_file_*")))
        os.kill(process.pid, signal.SIGKILL)
    sweep = sweep_of(tmp_path)
    (token,) = {submission.intent for submission in sweep.submissions().values()}
    assert states(token) == []
    return sweep, token


def states(token: str) -> list[str]:
    """What Slurm says of the array that has the token in its name."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%j|%T"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    return [line.partition("|")[2] for line in lines if line.partition("|")[0] == f"petseg-lab-{short(token)}"]


@pytest.mark.slurm
@pytest.mark.slow
def test_an_array_that_nobody_noted_does_its_work_and_is_adopted(
    tiny_sweep: list[str], tmp_path: Path, slow_sbatch: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, token = kill_in_flight(tiny_sweep, tmp_path)
    wait_until(lambda: len(states(token)) == len(sweep.trials))
    wait_until(lambda: all(trial.result() for trial in sweep.trials))
    assert run_command(main, [*tiny_sweep, *ON_SLURM]) == 0
    assert "2 done, 0 queued or running, 0 to submit" in capsys.readouterr().out
    assert [bool(submission.job_id) for submission in sweep.submissions().values()] == [True, True]


@pytest.mark.slurm
@pytest.mark.slow
def test_an_array_that_comes_after_its_trials_were_submitted_again_ends_at_once(
    tiny_sweep: list[str], tmp_path: Path, slow_sbatch: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, token = kill_in_flight(tiny_sweep, tmp_path)
    slow_sbatch.disturb()
    assert run_command(main, [*tiny_sweep, *ON_SLURM]) == 0
    assert "2 to submit" in capsys.readouterr().out
    wait_until(lambda: states(token) == ["COMPLETED"] * 2)
    wait_until(lambda: all(trial.result() for trial in sweep.trials))
    assert [len(read_attempts(trial.folder)) for trial in sweep.trials] == [1, 1]
    given = {Path(submission.log) for submission in sweep.submissions().values()}
    orphans = [path.read_text() for path in (sweep.folder / "logs").glob("*_log.out") if path not in given]
    assert len(orphans) == 2
    assert all(text.startswith("nothing to do: the launcher of this job was killed") for text in orphans)
    assert not any("Starting with JobEnvironment" in text for text in orphans)


@pytest.mark.slurm
@pytest.mark.slow
def test_cancelling_a_sweep_ends_the_jobs_that_nobody_noted(
    tiny_sweep: list[str], tmp_path: Path, slow_sbatch: Cluster, wait_for: Callable
) -> None:
    sweep, token = kill_in_flight([*tiny_sweep, "--set", "train.epochs=400"], tmp_path)
    wait_for(lambda: len(states(token)) == 2)
    assert run_command(cancel_main, [str(sweep.folder), "--yes"]) == 0
    wait_for(lambda: set(states(token)) == {"CANCELLED"})
    assert {row.status for row in trial_statuses(sweep)} == {"interrupted"}
