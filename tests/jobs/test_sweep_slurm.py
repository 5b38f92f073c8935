"""Sweeps on a real Slurm, and what it has room for."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.retry import main as retry_main
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.layout import load_overrides
from shards.command import run_command
from slurm.rehearsal.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "10"]


def trials(tmp_path: Path) -> list:
    return list(load_sweep(tmp_path / "runs" / "lab").trials)


def queued_jobs() -> list[str]:
    command = ["squeue", "--me", "--noheader", "--array", "--states=PENDING", "--format=%i"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()


@pytest.mark.slurm
def test_a_sweep_that_is_larger_than_the_queue_has_room_for(
    tiny_sweep: list[str], tmp_path: Path, set_limit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeating the command submits each trial once, however few jobs fit."""
    flags = [*tiny_sweep, *SMALL, "--axis", "model.arch=unet", "--axis", "train.seed=0,1,2,3,4"]
    other = ["sbatch", "--parsable", "--partition=gpu", "--output=/dev/null", "--wrap=true"]
    other_job = subprocess.run(other, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    def launch(code: int, *more: str) -> tuple[str, list[str]]:
        """What it prints, and where the trials stand."""
        assert run_command(main, [*flags, *more]) == code
        return capsys.readouterr().out, [row.status for row in trial_statuses(load_sweep(tmp_path / "runs" / "lab"))]

    set_limit("user", getpass.getuser(), MaxSubmitJobs=4)
    out, states = launch(75)
    assert "2 of 5 trials are left as planned: Slurm takes no more of your jobs now, for the reason above" in out
    assert states == ["queued"] * 3 + ["planned"] * 2
    path = tmp_path / "runs" / "lab" / "submissions.jsonl"
    before = path.read_text()
    out, states = launch(75)
    assert "3 queued or running, 2 to submit" in out
    assert path.read_text() == before  # nothing fits, nothing was intended
    subprocess.run(["scancel", other_job], check=True, timeout=30)
    out, states = launch(75)
    assert "1 of 5 trials are left as planned" in out
    assert states == ["queued"] * 4 + ["planned"]
    set_limit("user", getpass.getuser(), MaxSubmitJobs=100)
    out, states = launch(0)
    assert states == ["queued"] * 5
    assert "left as planned" not in out
    notes = [json.loads(line) for line in path.read_text().splitlines()]
    jobs = [note["job_id"] for note in notes if note["job_id"]]
    assert len(jobs) == len(notes) / 2 == 5  # an intent and a job for each trial
    assert sorted(jobs) == sorted(queued_jobs())

    set_limit("user", getpass.getuser(), MaxSubmitJobs=7)
    assert run_command(main, [*flags, "--name", "packed", "--trials-per-job", "3"]) == 0
    assert len(queued_jobs()) == 7
    assert {row.status for row in trial_statuses(load_sweep(tmp_path / "runs" / "packed"))} == {"queued"}


@pytest.mark.slurm
def test_the_limit_of_parallel_jobs_counts_those_of_earlier_submissions(
    tiny_sweep: list[str], tmp_path: Path, set_limit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The cluster's partition is down: all jobs wait, and squeue says for what."""
    flags = [*tiny_sweep, *SMALL, "--axis", "model.arch=unet", "--max-parallel", "3"]
    assert run_command(main, [*flags, "--axis", "train.seed=0,1"]) == 0
    assert run_command(main, [*flags, "--axis", "train.seed=0,1,2"]) == 0  # three have room
    first, alone = sorted({job.partition("_")[0] for job in queued_jobs()}, key=int)
    capsys.readouterr()
    more = [*flags, "--axis", "train.seed=0,1,2,3,4"]
    assert run_command(main, [*more, "--dry-run", "--no-probe"]) == 0
    assert f"#SBATCH --dependency=afterany:{first}:{alone}" in capsys.readouterr().out
    assert run_command(main, more) == 0
    command = ["squeue", "--me", "--noheader", "--array", "--format=%F %E"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    waits = dict(line.split(maxsplit=1) for line in lines)
    last = max(waits, key=int)
    assert waits[first] == waits[alone] == "(null)"
    assert {word.partition("(")[0] for word in waits[last].split(",")} == {f"afterany:{first}_*", f"afterany:{alone}"}
    assert len(lines) == 5


@pytest.mark.slurm
def test_what_a_retry_has_no_room_for_is_not_changed(
    tiny_sweep: list[str], tmp_path: Path, set_limit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*tiny_sweep, *SMALL, "--axis", "model.arch=unet", "--axis", "train.seed=0,1"]
    assert run_command(main, flags) == 0
    subprocess.run(["scancel", "--me"], check=True, timeout=30)
    sweep = load_sweep(tmp_path / "runs" / "lab")
    for trial in sweep.trials:
        job_id = sweep.submissions()[trial.id].job_id
        trial.write_state(TrialState("failed", error="torch.OutOfMemoryError: CUDA out of memory.", job_id=job_id))
    set_limit("user", getpass.getuser(), MaxSubmitJobs=1)
    assert run_command(retry_main, [str(sweep.folder), "--failed"]) == 75
    assert "1 of 2 trials are left" in capsys.readouterr().out
    assert [row.status for row in trial_statuses(sweep)] == ["queued", "failed"]
    steps = [load_overrides(trial.folder).get("train.accumulation_steps") for trial in sweep.trials]
    assert steps == [2, None]
    set_limit("user", getpass.getuser(), MaxSubmitJobs=2)
    assert run_command(retry_main, [str(sweep.folder), "--failed"]) == 0
    assert load_overrides(sweep.trials[1].folder) == {"train.accumulation_steps": 2}


@pytest.mark.slurm
@pytest.mark.slow
def test_a_sweep_on_a_real_slurm(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python jobs/sweep.py --partition gpu`, as a script, and the same command again."""
    env = {**os.environ, "WANDB_API_KEY": "canary-0123456789", "OMP_NUM_THREADS": "1"}
    env["ACCELERATE_USE_CPU"] = "true"  # its GPUs are make-believe
    command = [sys.executable, "jobs/sweep.py", "--partition", "gpu", *tiny_sweep]
    command += ["--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "10", "--signal-delay-s", "60"]

    def launch() -> str:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "2 to submit" in launch()
    again = re.search(r"(\d) done, (\d) queued or running, 0 to submit", launch())
    assert again  # on a busy machine trials may be done before the second command looks
    assert int(again[1]) + int(again[2]) == 2
    sweep = load_sweep(tmp_path / "runs" / "lab")
    wait_for(lambda: all(trial.result() for trial in sweep.trials))
    wait_for(lambda: {row.status for row in trial_statuses(sweep)} == {"done"})
    assert "2 done, 0 queued or running, 0 to submit" in launch()
    hosts = {"node1", "node2"} if os.geteuid() == 0 else {socket.gethostname()}  # namespaces of their own, or none
    assert {row.host for row in trial_statuses(sweep)} <= hosts
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and b"canary-0123456789" in p.read_bytes()]


@pytest.mark.slurm
@pytest.mark.slow
def test_trials_that_share_a_job_run_one_after_the_other(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = [*tiny_sweep, *SMALL, "--trials-per-job", "3", "--axis", "model.arch=unet", "--axis", "train.seed=0,1,2"]
    assert run_command(main, [*flags, "--set", "train.epochs=10"]) == 0
    sweep = load_sweep(tmp_path / "runs" / "lab")
    seen: list[list[str]] = []

    def look() -> list[str]:
        states = [row.status for row in trial_statuses(sweep)]
        if states not in seen:
            seen.append(states)
        return states

    for number in range(3):
        wait_for(lambda number=number: look()[number] == "done")
    assert len({submission.job_id for submission in sweep.submissions().values()}) == 1
    for done in range(3):
        assert ["done"] * done + ["running"] + ["queued"] * (2 - done) in seen
    assert all(states.count("running") <= 1 and "interrupted" not in states for states in seen)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_trial_on_two_nodes_with_two_processes_each(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    flags = ["--partition", "gpu", "--gpus", "0", "--nodes", "2", "--tasks-per-node", "2", "--cpus-per-task", "1"]
    flags += ["--mem-gb", "2", "--timeout-min", "10", "--axis", "model.arch=unet"]
    assert run_command(main, [*tiny_sweep, *flags]) == 0
    (trial,) = trials(tmp_path)
    wait_for(lambda: trial.result() or trial.state().status == "failed")
    result = trial.result()
    assert result is not None, json.dumps(trial.state())
    assert result.world_size == 4


@pytest.mark.slurm
@pytest.mark.slow
def test_a_trial_whose_time_is_up_is_requeued_and_goes_on(
    tiny_sweep: list[str], tmp_path: Path, on_cluster: Cluster, wait_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm sends USR2 ahead of the time limit; here we do."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "20"]
    flags += ["--axis", "model.arch=unet", "--set", "train.epochs=40"]
    assert run_command(main, [*tiny_sweep, *flags]) == 0
    (trial,) = trials(tmp_path)
    wait_for(lambda: len(trial.metrics()) >= 2)
    job = load_sweep(tmp_path / "runs" / "lab").submissions()[trial.id]
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True, timeout=30)
    wait_for(lambda: trial.result())
    log = Path(job.log).read_text()
    assert "Job has timed out" in log or "requeue" in log.lower()
    assert "resumed" in log
    assert [row["epoch"] for row in trial.metrics()] == list(range(1, 41))
