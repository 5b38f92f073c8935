"""Sweeps as users run them, on this machine and on a real Slurm."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from jobs.retry import main as retry_main
from jobs.spec import expand, load_spec, parse_axes, parse_settings
from jobs.standing import standings
from jobs.sweep import Command, main
from jobs.trial import Sweep, load_sweep, plan_sweep, save_sweep
from petseg.data.store import read_manifest
from petseg.run_folder import load_overrides
from shards.command import run_command
from slurm.rehearsal_cluster import Cluster

REPOSITORY = Path(__file__).parents[2]


def trials(tmp_path: Path, name: str = "lab") -> list:
    return list(load_sweep(tmp_path / "runs" / name).trials)


def test_a_sweep_on_this_machine_runs_once_and_no_trial_twice(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [*tiny_sweep, "--cluster", "local", "--max-parallel", "2"]) == 0
    assert "2 trials, 0 done, 0 queued or running, 2 to submit" in capsys.readouterr().out
    sweep = load_sweep(tmp_path / "runs" / "lab")
    rows = standings(sweep)
    assert [row.status for row in rows] == ["done", "done"]
    assert [row.epoch for row in rows] == [1, 1]
    assert all("epoch 1/1" in Path(row.log).read_text() for row in rows)
    assert {row.trial.axes["model.arch"] for row in rows} == {"unet", "resnet34_unet"}
    before = (sweep.folder / "submissions.jsonl").read_text()

    assert run_command(main, [*tiny_sweep, "--cluster", "local"]) == 0
    assert "2 done, 0 queued or running, 0 to submit" in capsys.readouterr().out
    assert (sweep.folder / "submissions.jsonl").read_text() == before

    (rows[0].trial.folder / "result.json").unlink()  # what is missing, and nothing else
    assert run_command(main, [*tiny_sweep, "--cluster", "local"]) == 0
    assert "1 done, 0 queued or running, 1 to submit" in capsys.readouterr().out

    more = [*tiny_sweep, "--axis", "model.arch=unet", "--axis", "train.seed=0,1"]
    assert run_command(main, [*more, "--cluster", "debug"]) == 0
    assert "2 trials, 1 done, 0 queued or running, 1 to submit" in capsys.readouterr().out
    assert len(trials(tmp_path)) == 3


def test_a_failed_trial_is_reported_with_its_error_and_tried_again(
    tiny_sweep: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*tiny_sweep, "--axis", "model.arch=unet", "--set", "optim.lr=1e30", "--cluster", "local"]
    assert run_command(main, flags) == 3
    assert "not finite" in caplog.text
    (row,) = standings(load_sweep(tmp_path / "runs" / "lab"))
    assert row.status == "failed"
    assert "Failure: the loss is not finite" in row.note
    assert "Traceback" in Path(row.log).read_text()


def test_dry_run_lists_the_trials_and_the_sbatch_text_and_does_nothing(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--partition", "gpu", "--gpus", "2", "--timeout-min", "90", "--account", "pets", "--dry-run", "--no-probe"]
    assert run_command(main, [*tiny_sweep, *flags]) == 0
    out = capsys.readouterr().out
    assert "resnet34_unet" in out
    for line in ("--array=0-1%2", "--partition=gpu", "--gpus-per-node=2", "--time=90", "--account=pets"):
        assert f"#SBATCH {line}" in out
    assert not (tmp_path / "runs").exists()


def test_a_sweep_beyond_the_budget_is_not_submitted(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command(main, [*tiny_sweep, "--cluster", "local", "--set", "train.epochs=100000", "--budget", "0.1cpuh"])
        == 2
    )
    captured = capsys.readouterr()
    assert "over the budget of 0.1" in captured.err
    assert "core" in captured.out
    assert not load_sweep(tmp_path / "runs" / "lab").submissions()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "data.shards=nowhere"], "no shard set in nowhere: pack one with `python -m shards.pack"),
        (["--axis", "model.arc=unet"], "there is no config field 'model.arc'; near it: model.arch"),
        (["--set", "train.epochs=many"], "train.epochs = 'many': must be of type int"),
        (["--axis", "model.arch=vgg"], "model.arch = 'vgg': choose one of unet, resnet34_unet"),
        (["--set", "train.epochs"], "write --set NAME=VALUE"),
        (["--sweep", "none.yaml"], "no sweep file none.yaml"),
        (["--nodes", "0"], "nodes=0: must be at least 1"),
    ],
)
def test_wrong_use_is_one_line_with_what_to_do(
    tiny_sweep: list[str], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_command(main, [*tiny_sweep, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_sbatch_says_what_to_do(
    tiny_sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(main, [*tiny_sweep, "--partition", "gpu"]) == 2
    assert "no sbatch on PATH" in (error := capsys.readouterr().err)
    assert "--cluster local" in error


def test_another_shard_set_under_the_same_name_is_refused(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shards.pack import PackConfig, pack

    other = tmp_path / "other"
    pack(PackConfig(out=other, synthetic=8, seed=9, image_size_px=64, workers=1))
    save_sweep(sweep_of(tiny_sweep))
    assert run_command(main, [*tiny_sweep, "--set", f"data.shards={other}", "--cluster", "local"]) == 2
    assert "is a sweep on another shard set" in capsys.readouterr().err


def sweep_of(flags: list[str]) -> Sweep:
    command = tyro.cli(Command, args=flags)
    spec = load_spec(command.sweep).changed(parse_axes(command.axis), parse_settings(command.set, "--set"))
    cells = expand(spec)
    shards = cells[0].config.data.shards
    return plan_sweep(spec, cells, read_manifest(shards), shards, command.runs_dir / "lab")


def test_two_launchers_at_once_are_told_apart(
    tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    folder = tmp_path / "runs" / "lab"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert run_command(main, [*tiny_sweep, "--cluster", "local"]) == 2
    assert "another launcher is at work" in capsys.readouterr().err


def test_planning_and_status_stay_free_of_torch() -> None:
    """They run on login nodes, where importing torch takes seconds."""
    code = "import sys, jobs.sweep, jobs.status; sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


SMALL = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "10"]


def queued_jobs() -> list[str]:
    command = ["squeue", "--me", "--noheader", "--array", "--states=PENDING", "--format=%i"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()


@pytest.mark.slurm
def test_a_sweep_that_is_larger_than_the_queue_has_room_for(
    tiny_sweep: list[str], tmp_path: Path, set_limit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again and again submits each trial once, however little fits."""
    flags = [*tiny_sweep, *SMALL, "--axis", "model.arch=unet", "--axis", "train.seed=0,1,2,3,4"]
    other = ["sbatch", "--parsable", "--partition=gpu", "--output=/dev/null", "--wrap=true"]
    other_job = subprocess.run(other, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    def launch(code: int, *more: str) -> tuple[str, list[str]]:
        """What it prints, and where the trials stand."""
        assert run_command(main, [*flags, *more]) == code
        return capsys.readouterr().out, [row.status for row in standings(load_sweep(tmp_path / "runs" / "lab"))]

    set_limit("user", getpass.getuser(), MaxSubmitJobs=4)
    out, states = launch(75)
    assert "2 of 5 trials are left as planned: Slurm takes no more of your jobs now. The same command again" in out
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
    assert {row.status for row in standings(load_sweep(tmp_path / "runs" / "packed"))} == {"queued"}


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
        trial.write_state(status="failed", error="torch.OutOfMemoryError: CUDA out of memory.", job_id=job_id)
    set_limit("user", getpass.getuser(), MaxSubmitJobs=1)
    assert run_command(retry_main, [str(sweep.folder), "--failed"]) == 75
    assert "1 of 2 trials are left" in capsys.readouterr().out
    assert [row.status for row in standings(sweep)] == ["queued", "failed"]
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
    command = [sys.executable, "jobs/sweep.py", "--partition", "gpu", *tiny_sweep]
    command += ["--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "10", "--signal-delay-s", "60"]

    def launch() -> str:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "2 to submit" in launch()
    assert "0 done, 2 queued or running, 0 to submit" in launch()
    sweep = load_sweep(tmp_path / "runs" / "lab")
    wait_for(lambda: all(trial.result() for trial in sweep.trials))
    wait_for(lambda: {row.status for row in standings(sweep)} == {"done"})
    assert "2 done, 0 queued or running, 0 to submit" in launch()
    assert {row.host for row in standings(sweep)} <= {"node1", "node2"} or os.geteuid() != 0
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
        states = [row.status for row in standings(sweep)]
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
    wait_for(lambda: trial.result() or trial.state().get("status") == "failed")
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
