"""A real Slurm that takes or answers nothing for a while: it is tried again, then exit code 75, and nothing twice."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.cancel import main as cancel_main
from jobs.chain import main as chain_main
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from shards.command import run_command
from slurm import patience
from slurm.rehearsal import client
from slurm.rehearsal.answers import Answer
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site
from slurm.submission import work_file

SMALL = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "10"]

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def idle_cluster(slurm_daemons: None) -> Iterator[Cluster]:
    """A cluster that starts no job."""
    with rehearse(Site(nodes=1, cpus=4, gpus=0, conf={"gpu.State": "DOWN"})) as cluster:
        yield cluster


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes is tried again for three seconds."""
    monkeypatch.setattr(patience, "PATIENCE_S", 3.0)
    monkeypatch.setattr("slurm.submission.ASK_S", 1.0)
    monkeypatch.setattr(patience, "QUIET_S", 1.0)
    monkeypatch.setattr(patience, "PAUSES_S", (0.1, 0.1, 1.0))


@pytest.fixture
def site(idle_cluster: Cluster, impatient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """This process's own Slurm commands talk to it."""
    for name, value in idle_cluster.env.items():
        monkeypatch.setenv(name, value)
    yield idle_cluster
    idle_cluster.disturb()
    client.order(idle_cluster.root, ["scancel", "--me"])


@pytest.fixture
def launch(tiny_sweep: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the sweep of two trials, compares its exit code, and returns what it prints."""

    def run(code: int, *more: str) -> str:
        assert (
            run_command(main, [*tiny_sweep, *SMALL, "--axis", "model.arch=unet", "--axis", "train.seed=0,1", *more])
            == code
        )
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def sweep_of(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path / "runs" / "lab")


def queued() -> list[str]:
    """The array tasks that wait, sorted."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=PENDING", "--format=%i"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return sorted(done.stdout.split())


def assert_each_once(tmp_path: Path, count: int = 2) -> None:
    """Every trial has a job, Slurm has those jobs and no others, and each finds what it is to run."""
    submissions = sweep_of(tmp_path).submissions().values()
    assert len(submissions) == count
    assert queued() == sorted(submission.job_id for submission in submissions)
    logs = tmp_path / "runs" / "lab" / "logs"
    for submission in submissions:
        adopted = submission.intent and work_file(logs, submission.intent, submission.place).is_file()
        assert adopted or (logs / f"{submission.job_id}_submitted.pkl").is_file(), submission


def test_an_sbatch_that_fails_twice(
    site: Cluster, launch: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.disturb(Answer("sbatch", fails="first-2"))  # the first call asks for room only
    assert "2 to submit" in launch(0)
    assert "sbatch: Socket timed out on send/recv operation; trying again in 0 s" in caplog.text
    assert_each_once(tmp_path)


def test_an_sbatch_whose_answer_is_lost(
    site: Cluster, launch: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.disturb(Answer("sbatch", fails="always", kind="lose"))
    launch(0)
    assert "but Slurm has taken the jobs" in caplog.text
    site.disturb()
    assert_each_once(tmp_path)


def test_an_sbatch_that_does_not_come_back(site: Cluster, launch: Callable[..., str], tmp_path: Path) -> None:
    site.disturb(Answer("sbatch", fails="always"))
    assert "2 of 2 trials are left as planned" in launch(75)
    assert queued() == []
    site.disturb()
    assert "2 to submit" in launch(0)
    assert_each_once(tmp_path)


def test_neither_sbatch_nor_squeue_answers_after_the_jobs_were_taken(
    site: Cluster, launch: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not known is found out by the next launch, and nothing runs twice."""
    site.disturb(Answer("sbatch", fails="always", kind="lose"), Answer("squeue", fails="always"))
    launch(75)
    assert "whether it took the jobs is not known" in caplog.text
    assert "not now: squeue" in launch(75)  # asked before anything is submitted
    site.disturb()
    assert len(queued()) == 2
    launch(0)
    assert_each_once(tmp_path)


def test_what_is_refused_for_good_is_wrong_use_at_once(
    site: Cluster, launch: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    site.disturb(Answer("sbatch", fails="always", words="Batch job submission failed: Invalid qos specification"))
    assert "error: sbatch refused the job: Batch job submission failed: Invalid qos" in launch(2)
    assert "trying again" not in caplog.text


@pytest.mark.slow
def test_slurmctld_is_away_and_comes_back(
    site: Cluster, launch: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(0)
    site.break_node("slurmctld")
    try:
        folder = str(tmp_path / "runs" / "lab")
        assert "2 of 2 trials are left as planned" in launch(75, "--name", "other")
        assert run_command(cancel_main, [folder, "--yes"]) == 75
        assert "not now: scancel: " in capsys.readouterr().err
    finally:
        site.heal_node("slurmctld")
    assert_each_once(tmp_path)
    assert "2 to submit" in launch(0, "--name", "other")


@pytest.mark.slow
def test_a_cluster_with_as_many_jobs_as_it_can_hold(
    slurm_daemons: None, impatient: None, launch: Callable[..., str], tmp_path: Path, tiny_sweep: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """MaxJobCount: as many as fit, at once; a job for which there is no room waits for some, says so, and gives up."""
    seeds = ["--axis", "train.seed=0,1,2,3,4,5,6,7,8,9"]
    with rehearse(Site(nodes=1, cpus=4, gpus=0, conf={"gpu.State": "DOWN", "MaxJobCount": "6"})) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        out = launch(75, *seeds)
        taken = len(queued())
        assert 3 <= taken <= 6
        assert f"{10 - taken} of 10 trials are left as planned" in out
        assert f"sbatch takes {taken} of 10 jobs now (MaxJobCount of the cluster)" in caplog.text
        assert f"{taken} queued or running, {10 - taken} to submit" in launch(75, *seeds)
        assert_each_once(tmp_path, taken)
        assert {row.status for row in trial_statuses(sweep_of(tmp_path))} == {"queued", "planned"}
        assert run_command(chain_main, ["report", *tiny_sweep, *SMALL, "--axis", "model.arch=unet"]) == 75
        assert "not now: sbatch: Slurm temporarily unable to accept job" in capsys.readouterr().err
        assert "sbatch: Slurm temporarily unable to accept job, sleeping and retrying; waiting for" in caplog.text


def test_a_large_array_is_cut_to_what_a_flaky_scontrol_says(
    site: Cluster, launch: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.disturb(Answer("scontrol", fails="first-1"))
    with caplog.at_level(logging.WARNING):
        launch(0)
    assert "scontrol: Socket timed out on send/recv operation; trying again" in caplog.text
    assert_each_once(tmp_path)
