"""docs/operating.md, rows 1, 3, 5 and 6: a node dies, a process is killed, a signal comes before training."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from jobs.runs.trial import Submission
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.attempts import read_attempts
from shards.command import run_command
from slurm.rehearsal.cluster import rehearse
from slurm.rehearsal.settings import Site
from tests.jobs.disturbed_runs import LOCAL, PAIR, ended, launcher, record, rows_of, sweep_of
from tests.jobs.faulty_checkout import copy_with_fault, wait_until

# --- 1: a node


@pytest.mark.slurm
@pytest.mark.slow
def test_a_node_that_dies_in_an_epoch(
    tiny_sweep: list[str], tmp_path: Path, slurm_daemons: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm starts the job again, which goes on from what was saved."""
    flags = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "20"]
    flags += ["--axis", "model.arch=unet", "--set", "train.epochs=30", "--set", "train.save_every_min=0.001"]
    with rehearse(Site(nodes=2, cpus=2, gpus=0)) as cluster:
        for name, value in {**cluster.env, "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, value)
        assert run_command(main, [*tiny_sweep, *flags, "--set", "train.log_every=1"]) == 0
        (trial,) = sweep_of(tmp_path).trials
        wait_until(lambda: len(trial.metrics()) >= 3)
        job = sweep_of(tmp_path).submissions()[trial.id]
        cluster.break_node(node_of(job))
        wait_until(lambda: trial.result())
    first, second = read_attempts(trial.folder)
    assert (first.first_step, first.job_id) == (0, second.job_id)
    assert second.first_step >= 2 * 2  # the third row is written before its checkpoint
    assert trial.state().restarts == 1
    assert [row["epoch"] for row in trial.metrics()] == list(range(1, 31))
    assert [row["data/coverage"] for row in trial.metrics()] == [1.0] * 30


def node_of(job: Submission) -> str:
    command = ["squeue", "--noheader", "--jobs", job.job_id, "--format=%N"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


# --- 3: no grace


@pytest.mark.slow
def test_a_kill_without_warning_costs_one_interval(pet_shards: Path, tmp_path: Path) -> None:
    """Saved after every step, killed in the third: it goes on after the second, and ends like an undisturbed run."""
    folders = {name: tmp_path / name for name in ("killed", "calm")}
    for folder in folders.values():
        folder.mkdir()
    often = {"train.save-every-min": 1e-9}
    code, _ = ended(record(pet_shards, folders["killed"], "SIGKILL:0:1:2", **often))
    assert code == -signal.SIGKILL
    code, log = ended(record(pet_shards, folders["killed"], **often))
    assert code == 0, log
    assert "after epoch 0 of 2 and 2 steps" in log
    assert ended(record(pet_shards, folders["calm"]))[0] == 0
    assert rows_of(folders["killed"] / "run") == rows_of(folders["calm"] / "run")


# --- 5, 6: a signal before training


SIGNAL_ONCE = """\
import os as _os, signal as _signal
from pathlib import Path as _Path
if not _Path({marker!r}).exists():
    _Path({marker!r}).touch()
    _os.kill(_os.getpid(), _signal.SIG{name})
"""
SIGNAL_RANK_1 = """\
    from pathlib import Path
    if environment.global_rank == 1 and not Path({marker!r}).exists():
        import signal
        Path({marker!r}).touch()
        os.kill(os.getpid(), signal.SIG{name})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["USR2", "TERM"])
def test_a_signal_while_torch_is_imported(tiny_sweep: list[str], tmp_path: Path, name: str) -> None:
    """Ahead of the time limit the job comes back by itself; after TERM the same command goes on."""
    fault = SIGNAL_ONCE.format(marker=str(tmp_path / "sent"), name=name)
    copy = copy_with_fault(tmp_path / "checkout", "petseg/training/loop.py", "import ", fault)
    code, log = ended(launcher(copy, [*tiny_sweep, *LOCAL]))
    (trial,) = sweep_of(tmp_path).trials
    if name == "TERM":
        assert code == 3, log
        assert trial.state().status == "interrupted"
        assert [row.status for row in trial_statuses(sweep_of(tmp_path))] == ["interrupted"]
        code, log = ended(launcher(copy, [*tiny_sweep, *LOCAL]))
    assert code == 0, log
    assert [attempt.first_step for attempt in read_attempts(trial.folder)] == [0, 1]
    assert trial.result() is not None


@pytest.mark.slow
def test_a_signal_that_one_rank_gets_before_the_ranks_meet(tiny_sweep: list[str], tmp_path: Path) -> None:
    """Were it to leave, the others would wait for it: they stop together at the first step's boundary."""
    fault = SIGNAL_RANK_1.format(marker=str(tmp_path / "sent"), name="USR2")
    copy = copy_with_fault(tmp_path / "checkout", "jobs/node/rendezvous.py", "    if environment.num_tasks == 1", fault)
    code, log = ended(launcher(copy, [*tiny_sweep, *PAIR]))
    assert code == 0, log
    (trial,) = sweep_of(tmp_path).trials
    assert [attempt.first_step for attempt in read_attempts(trial.folder)] == [0, 1]
    assert (tmp_path / "sent").exists()
