"""Sweeps that are disturbed end as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.launch import journal as intent_module
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.attempts import read_attempts
from shards.command import run_command
from slurm.rehearsal.cluster import Cluster

REPOSITORY = Path(__file__).parents[3]
ON_SLURM = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "20"]


def sweep_of(tmp_path: Path, name: str = "lab") -> Sweep:
    return load_sweep(tmp_path / "runs" / name)


def numbers(trial: Trial) -> tuple[list[dict[str, float]], dict[str, float]]:
    """What a trial found out, without clocks: its rows, and its result's metrics."""
    rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in trial.metrics()]
    result = trial.result()
    assert result is not None
    return rows, result.metrics


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.mark.slurm
@pytest.mark.slow
def test_a_requeued_trial_on_two_nodes_ends_with_the_same_numbers(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable, one_thread: None
) -> None:
    """USR2 in the middle of an epoch, as ahead of the time limit: saved at that step, requeued, the same to the bit."""
    flags = [*tiny_sweep, *ON_SLURM, "--nodes", "2", "--axis", "model.arch=unet", "--set", "train.epochs=12"]
    flags += ["--set", "train.log_every=1", "--set", "train.batch_size=2"]
    assert run_command(main, [*flags, "--name", "stopped"]) == 0
    (stopped,) = sweep_of(tmp_path, "stopped").trials
    wait_for(lambda: len(stopped.metrics()) >= 2)
    job = sweep_of(tmp_path, "stopped").submissions()[stopped.id]
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True, timeout=30)
    wait_for(lambda: len(read_attempts(stopped.folder)) == 2)
    wait_for(lambda: stopped.result())
    log = Path(job.log).read_text()
    assert "resumed" in log
    assert read_attempts(stopped.folder)[1].first_step % 14 != 0  # within an epoch
    assert stopped.state().restarts == 1

    assert run_command(main, [*flags, "--name", "calm"]) == 0
    (calm,) = sweep_of(tmp_path, "calm").trials
    wait_for(lambda: calm.result())
    assert numbers(stopped) == numbers(calm)
    assert len(read_attempts(calm.folder)) == 1


@pytest.mark.slurm
@pytest.mark.slow
def test_a_launcher_killed_after_sbatch_submits_nothing_twice(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, wait_for: Callable,
    one_thread: None, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = [*tiny_sweep, *ON_SLURM, "--axis", "train.seed=0,1"]
    script = (
        "import os, signal, sys\n"
        "from jobs import sweep\nfrom jobs.runs import trial\n"
        "add = trial.Sweep.add_submissions\n"
        "def killed(self, submissions):\n"
        "    submissions = list(submissions)\n"
        "    if any(submission.job_id for submission in submissions):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    add(self, submissions)\n"
        "trial.Sweep.add_submissions = killed\n"
        "sweep.main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=REPOSITORY, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    sweep = sweep_of(tmp_path)
    assert {submission.job_id for submission in sweep.submissions().values()} == {""}
    assert run_command(main, flags) == 0
    assert "4 trials" in (out := capsys.readouterr().out)
    assert "0 to submit" in out
    wait_for(lambda: all(trial.result() for trial in sweep.trials))
    assert [len(read_attempts(trial.folder)) for trial in sweep.trials] == [1] * 4


@pytest.mark.slurm
@pytest.mark.slow
def test_a_launcher_killed_before_sbatch_is_submitted_again(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*tiny_sweep, *ON_SLURM, "--axis", "model.arch=unet"]
    (tmp_path / "runs" / "lab").mkdir(parents=True)  # so that it stays
    assert run_command(main, [*flags, "--partition", "nowhere"]) == 2
    sweep = sweep_of(tmp_path)
    intent_module.announce(sweep, [[trial] for trial in sweep.trials], range(1))
    assert [submission.job_id for submission in sweep.submissions().values()] == [""]
    assert [row.status for row in trial_statuses(sweep)] == ["planned"]
    assert run_command(main, flags) == 0
    assert "1 to submit" in capsys.readouterr().out
    assert [submission.job_id != "" for submission in sweep.submissions().values()] == [True]
    subprocess.run(["scancel", "--me"], check=True, timeout=30)


@pytest.mark.slow
def test_jobs_run_the_code_of_their_submission(tiny_sweep: list[str], tmp_path: Path, one_thread: None) -> None:
    """The second trial starts after the code was broken, and does not see it."""
    copy = tmp_path / "checkout"
    for package in ("jobs", "petseg", "shards", "slurm"):
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    flags = [*tiny_sweep, "--cluster", "local", "--max-parallel", "1"]
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from jobs import sweep\nfrom jobs.launch import submit as launch\n"
        "take = launch.take_snapshot\n"
        "def then_edit(folder):\n"
        "    taken = take(folder)\n"
        "    Path(sys.argv[1], 'petseg', 'training', 'loop.py').write_text('raise SystemExit(9)')\n"
        "    return taken\n"
        "launch.take_snapshot = then_edit\n"
        "sys.exit(sweep.main(sys.argv[2:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(copy), *flags],
        cwd=copy, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sweep = sweep_of(tmp_path)
    (code,) = {read_attempts(trial.folder)[0].code for trial in sweep.trials}
    note = json.loads((sweep.folder / "code" / code / "snapshot.json").read_text())
    assert note["code"] == code
    assert (sweep.folder / "code" / code / "petseg" / "training" / "loop.py").read_text() != "raise SystemExit(9)"


@pytest.mark.slow
def test_several_trials_in_one_job(tiny_sweep: list[str], tmp_path: Path, one_thread: None) -> None:
    flags = [*tiny_sweep, "--cluster", "local", "--trials-per-job", "3", "--axis", "augment.policy=none,elastic"]
    assert run_command(main, [*flags, "--set", "optim.lr=1e-3", "--axis", "train.mixed_precision=no,bf16"]) == 0
    sweep = sweep_of(tmp_path)
    assert len(sweep.trials) == 8
    assert all(trial.result() for trial in sweep.trials)
    jobs = [submission.job_id for submission in sweep.submissions().values()]
    assert sorted(jobs.count(job) for job in set(jobs)) == [2, 3, 3]


@pytest.mark.slow
def test_a_trial_that_fails_does_not_take_its_jobs_others_along(
    tiny_sweep: list[str], tmp_path: Path, one_thread: None
) -> None:
    flags = [*tiny_sweep, "--cluster", "local", "--trials-per-job", "2", "--axis", "optim.lr=1e30,1e-3"]
    assert run_command(main, [*flags, "--axis", "model.arch=unet"]) == 3
    assert [row.status for row in trial_statuses(sweep_of(tmp_path))] == ["failed", "done"]


def test_without_squeue_nothing_is_submitted_over_a_cut_off_submission(
    tiny_sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "runs" / "lab").mkdir(parents=True)  # so that it stays
    assert run_command(main, [*tiny_sweep, "--partition", "gpu"]) == 2  # no sbatch
    sweep = sweep_of(tmp_path)
    intent_module.announce(sweep, [[trial] for trial in sweep.trials], range(2))
    capsys.readouterr()
    assert run_command(main, [*tiny_sweep, "--partition", "gpu"]) == 2
    assert "squeue" in capsys.readouterr().err
