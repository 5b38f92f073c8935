"""Sweeps on shard sets that are fetched from an address, or by a command: requeued, retried, and as a chain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.chain import main as chain
from jobs.retry import main as retry
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main as sweep_main
from petseg.run_folder.attempts import read_attempts
from shards.cause import Cause
from shards.command import OK, WRONG_USE, run_command
from slurm.rehearsal.cluster import Cluster
from tests.petseg.shard_server import serve

ON_SLURM = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "20"]
ONE = ["--axis", "model.arch=unet", "--set", "train.log_every=1"]


@pytest.fixture(params=["http", "pipe"])
def location(request: pytest.FixtureRequest, pet_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The drawn pets, by an address of loopback or by a command."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if request.param == "pipe":
        yield f"pipe:cat {pet_shards}/{{}}"
        return
    with serve(pet_shards) as server:
        yield server.url


@pytest.fixture
def remote_sweep(tiny_sweep: list[str], location: str, tmp_path: Path) -> list[str]:
    words = [f"data.shards={location}" if word.startswith("data.shards=") else word for word in tiny_sweep]
    return [*words, *ONE, "--set", f"data.cache_dir={tmp_path / 'cache'}"]


def forget_known_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on another user asks, who has never named a set."""
    (tmp_path / "another-home").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another-home"))


def sweep_of(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path / "runs" / "lab")


def statuses(tmp_path: Path) -> list[str]:
    return [row.status for row in trial_statuses(sweep_of(tmp_path))]


@pytest.mark.slow
def test_retry_fetches_what_another_user_has_named_only_where_it_is_told_to(
    remote_sweep: list[str], location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """On this machine: the job's own check lets the location through that retry was given leave for."""
    assert run_command(sweep_main, [*remote_sweep, "--cluster", "debug"]) == OK
    (trial,) = sweep_of(tmp_path).trials
    (trial.folder / "result.json").unlink()
    job_id = sweep_of(tmp_path).submissions()[trial.id].job_id
    trial.write_state(TrialState("failed", error="OSError: x", cause=Cause.DATA, job_id=job_id))
    forget_known_sets(tmp_path, monkeypatch)
    words = [str(tmp_path / "runs" / "lab"), "--failed", "--even-so"]
    capsys.readouterr()
    assert run_command(retry, words) == WRONG_USE
    assert "add --allow-pipe if you trust it" in capsys.readouterr().err
    assert not trial.result()
    assert run_command(retry, [*words, "--allow-pipe"]) == OK
    assert trial.result()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_trial_on_a_remote_set_is_requeued_and_retried(
    remote_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    epochs = 100
    assert run_command(sweep_main, [*remote_sweep, *ON_SLURM, "--set", f"train.epochs={epochs}"]) == OK
    (trial,) = sweep_of(tmp_path).trials
    job_id = sweep_of(tmp_path).submissions()[trial.id].job_id
    wait_for(lambda: len(trial.metrics()) >= 2)
    subprocess.run(["scontrol", "requeue", job_id], check=True, timeout=30)
    wait_for(lambda: len(read_attempts(trial.folder)) == 2)
    before = len(trial.metrics())
    wait_for(lambda: len(trial.metrics()) > before)
    subprocess.run(["scancel", job_id], check=True, timeout=30)
    wait_for(lambda: statuses(tmp_path) == ["interrupted"])

    forget_known_sets(tmp_path, monkeypatch)
    words = [str(tmp_path / "runs" / "lab"), "--failed"]
    assert run_command(retry, words) == WRONG_USE
    assert sweep_of(tmp_path).submissions()[trial.id].job_id == job_id
    assert run_command(retry, [*words, "--allow-pipe"]) == OK
    wait_for(lambda: len(read_attempts(trial.folder)) == 3)
    wait_for(trial.result)
    first, second, third = read_attempts(trial.folder)
    assert first.first_step < second.first_step < third.first_step
    assert first.job_id == second.job_id != third.job_id
    assert [row["epoch"] for row in trial.metrics()] == list(range(1, epochs + 1))
    assert {row["data/coverage"] for row in trial.metrics()} == {1.0}


@pytest.mark.slurm
@pytest.mark.slow
def test_a_job_fetches_no_set_that_was_put_into_its_config_after_the_submission(
    remote_sweep: list[str], location: str, tmp_path: Path, on_cluster: Cluster, wait_for: Callable
) -> None:
    """The location that the sweep was submitted with goes through, one that a stranger has written does not."""
    blocker = subprocess.run(
        ["sbatch", "--parsable", "--partition=gpu", "--output=/dev/null", "--hold", "--wrap=true"],
        check=True, timeout=30, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    waits = ["--dependency", f"afterany:{blocker}"]
    assert run_command(sweep_main, [*remote_sweep, "--axis", "train.seed=0,1", *ON_SLURM, *waits]) == OK
    good, bad = sweep_of(tmp_path).trials
    content = json.loads((bad.folder / "config.json").read_text())
    content["config"]["data"]["shards"] = f"pipe:touch {tmp_path}/canary {{}}"
    (bad.folder / "config.json").write_text(json.dumps(content))
    subprocess.run(["scancel", blocker], check=True, timeout=30)
    wait_for(good.result)
    wait_for(lambda: bad.state().status == "failed")
    assert "which the sweep was not submitted with" in bad.state().error
    assert not (tmp_path / "canary").exists()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_chain_on_a_remote_set(
    remote_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable
) -> None:
    command = [sys.executable, "jobs/chain.py", "train", "report", *remote_sweep, *ON_SLURM]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == OK, done.stderr
    wait_for(lambda: statuses(tmp_path) == ["done"])
    wait_for((tmp_path / "runs" / "lab" / "report.html").exists)


@pytest.mark.slow
def test_a_chain_on_a_remote_set_on_this_machine(remote_sweep: list[str], tmp_path: Path) -> None:
    assert run_command(chain, ["train", "report", *remote_sweep, "--cluster", "debug"]) == OK
    assert statuses(tmp_path) == ["done"]
    assert (tmp_path / "runs" / "lab" / "report.html").exists()
