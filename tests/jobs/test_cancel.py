"""On real processes of submitit's, and on a real Slurm."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cancel import main
from jobs.launch.cancel import shared_job_warnings
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.processes import as_pid, command_line, is_launcher, parent_of, runs_trials, works_for
from jobs.state.trial_status import trial_statuses
from shards.command import run_command
from slurm import patience
from slurm.rehearsal.cluster import Cluster
from tests.jobs.written_trials import finish

REPOSITORY = Path(__file__).parents[2]

# As jobs/sweep.py runs a sweep on this machine, with sleep for training; the script's path is that of the real one.
LAUNCHER = """\
import signal, sys, time
from pathlib import Path
from slurm.executor import submit
from slurm.request import Request
from slurm.resources import Resources

def ready(index, job, state):
    if state == "started":
        print(index, job.job_id, flush=True)

signal.signal(signal.SIGTERM, signal.default_int_handler)
resources = Resources(gpus_per_node=0, cpus_per_task=1, mem_gb=1)
try:
    submit(time.sleep, [300.0] * int(sys.argv[2]), "local", Request(Path(sys.argv[1]), resources, "test", 2), ready)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    folder = tmp_path / "runs" / "lab"
    names = [f"{seed}{'b' * 9}" for seed in range(3)]
    trials = tuple(
        Trial(n, {"model.arch": "unet", "train.seed": s}, folder / "trials" / n) for s, n in enumerate(names)
    )
    sweep = Sweep(folder, "lab", {"train.seed": [0, 1, 2]}, "0" * 16, "x", trials)
    save_sweep(sweep)
    return sweep


def launch(sweep: Sweep, tmp_path: Path, count: int) -> subprocess.Popen[str]:
    """A launcher whose first two jobs run."""
    script = tmp_path / "jobs" / "sweep.py"
    script.parent.mkdir()
    script.write_text(LAUNCHER)
    command = [sys.executable, str(script), str(sweep.folder / "logs"), str(count)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    for _ in range(min(count, 2)):
        index, job_id = process.stdout.readline().split()
        log = sweep.folder / "logs" / f"{job_id}_0_log.out"
        sweep.add_submissions([Submission(sweep.trials[int(index)].id, job_id, "local", str(log))])
    return process


def test_the_other_trials_of_the_same_jobs_are_named(sweep: Sweep) -> None:
    """Not the chosen ones, not those of other jobs, and not those that have their result."""
    mine, beside_it, elsewhere = sweep.trials
    sweep.add_submissions([Submission(trial.id, "12_0", "slurm", "x.out") for trial in (mine, beside_it)])
    sweep.add_submissions([Submission(elsewhere.id, "12_1", "slurm", "x.out")])
    rows = [row for row in trial_statuses(sweep) if row.trial == mine]
    assert list(shared_job_warnings(sweep, rows)) == [
        f"their jobs have other trials too, which end with them: {beside_it.id}"
    ]
    beside_it.folder.mkdir(parents=True)
    finish(beside_it)
    assert list(shared_job_warnings(sweep, rows)) == []


def controllers(sweep: Sweep) -> list[int]:
    return [as_pid(submission.job_id) for submission in sweep.submissions().values()]


def test_a_sweep_of_this_machine_ends_with_its_launcher(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with launch(sweep, tmp_path, 3) as launcher:
        first, second = controllers(sweep)
        assert parent_of(first) == launcher.pid
        assert is_launcher(launcher.pid)
        assert works_for(first, sweep.folder / "logs")
        assert not works_for(first, tmp_path)
        assert run_command(main, [str(sweep.folder), "--yes"]) == 0
        assert launcher.wait(timeout=60) == 130
    out = capsys.readouterr().out
    assert "to cancel: 2" in out
    assert "ended: 2 of 2" in out
    assert not runs_trials(first)
    assert not runs_trials(second)
    assert len(sweep.submissions()) == 2  # the third was not started
    assert run_command(main, [str(sweep.folder), "--yes"]) == 0
    assert "nothing to cancel" in capsys.readouterr().out


def lets_term_pass(controller: int) -> bool:
    """Whether submitit's own handler stands in the job; before that, TERM ends a Python that is still starting."""
    (job,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split() or [""]
    status = Path(f"/proc/{job}/status").read_text() if job else ""
    (caught,) = re.findall(r"^SigCgt:\t(\w+)$", status, re.MULTILINE) or ["0"]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_one_trial_of_this_machine_and_by_force(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], wait_for: Callable
) -> None:
    with launch(sweep, tmp_path, 2) as launcher:
        first, second = controllers(sweep)
        wait_for(lambda: lets_term_pass(first))  # so that it has to be killed
        assert run_command(main, [str(sweep.folder), "--yes", "seed=0", "--grace-s", "0"]) == 0
        assert runs_trials(first)
        assert "ended: 0 of 1" in (out := capsys.readouterr().out)
        assert "end processes of this machine with --kill" in out
        assert run_command(main, [str(sweep.folder), "--yes", "seed=0", "--kill"]) == 0
        assert "ended: 1 of 1" in capsys.readouterr().out
        assert not runs_trials(first)
        assert runs_trials(second)
        assert run_command(main, [str(sweep.folder), "--yes", "--kill"]) == 0
        launcher.wait(timeout=60)


def test_no_process_but_ours_is_ended(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """Another sweep's controller, by its folder, was given the pid."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "submitit.local._local", "/elsewhere/logs"]
    with subprocess.Popen(command) as process:
        trial = sweep.trials[0]
        sweep.add_submissions([Submission(trial.id, str(process.pid), "local", "")])
        trial.write_state(TrialState("running", host=socket.gethostname(), job_id=str(process.pid), pid=process.pid))
        assert run_command(main, [str(sweep.folder), "--yes", "--kill", "--grace-s", "0"]) == 0
        assert process.poll() is None
        process.kill()
    assert "ended: 0 of 1" in capsys.readouterr().out


def test_trials_of_another_machine_are_cancelled_there(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.add_submissions([Submission(sweep.trials[0].id, "4242", "local", "")])
    sweep.trials[0].write_state(TrialState("running", host="elsewhere", job_id="4242", pid=4243))
    assert run_command(main, [str(sweep.folder), "--yes"]) == 2
    assert "runs on elsewhere: cancel it there" in capsys.readouterr().err


def test_pids_are_numbers_that_can_name_a_process() -> None:
    assert [as_pid(word) for word in ("12", 12, "DEBUG_1", "12_0", None, "-1", "0", "1")] == [12, 12, 0, 0, 0, 0, 0, 0]
    assert command_line(0) == []
    assert parent_of(0) == 0
    assert not is_launcher(0)


@pytest.mark.slurm
def test_jobs_of_a_real_slurm(
    sweep: Sweep, on_cluster: Cluster, wait_for: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sbatch", "--parsable", "--array=0-2%1", f"--output={sweep.folder}/%a", "--wrap", "sleep 300"]
    job = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    for number, trial in enumerate(sweep.trials):
        sweep.add_submissions([Submission(trial.id, f"{job}_{number}", "slurm", "")])
    wait_for(lambda: trial_statuses(sweep)[0].status == "running")
    assert run_command(main, [str(sweep.folder), "--yes", "seed=2"]) == 0
    assert "ended: 1 of 1" in capsys.readouterr().out
    assert [row.status for row in trial_statuses(sweep)] == ["running", "queued", "interrupted"]
    assert run_command(main, [str(sweep.folder), "--yes"]) == 0
    assert "to cancel: 2" in capsys.readouterr().out
    wait_for(lambda: {row.status for row in trial_statuses(sweep)} == {"interrupted"})
    first, *waiting = trial_statuses(sweep)
    assert first.cause == "cancelled"
    # of a task that was cancelled while it waited Slurm keeps no trace, unless there is accounting
    assert all("it never began, and Slurm no longer knows its job" in row.note for row in waiting)


def test_a_silent_slurm_is_reported(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.add_submissions([Submission(sweep.trials[0].id, "12_0", "slurm", "")])
    for name in ("squeue", "scancel"):
        (tmp_path / name).write_text(
            f"#!/bin/sh\necho '{name}: error: Unable to contact slurm controller' >&2\nexit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(patience, "PATIENCE_S", 1)
    assert run_command(main, [str(sweep.folder), "--yes"]) == 75
    said = "not now: scancel: Unable to contact slurm controller (tried for 1 s); run the same command again later\n"
    assert capsys.readouterr().err == said
