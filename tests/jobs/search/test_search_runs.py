"""Real searches on drawn pets: stopped early, killed, and on a real Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from jobs.search.journal import JOURNAL_NAME
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.layout import load_pruned
from shards.command import run_command
from slurm.rehearsal.cluster import Cluster
from tests.jobs.conftest import TINY

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def search_file(pet_shards: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Flags of jobs/sweep.py for a search of trials of a second or two, in tmp_path/runs/s."""

    def write(**top: object) -> list[str]:
        settings = {"data.shards": str(pet_shards), **TINY, "data.image_size_px": 32, "train.test": False}
        parameters = {
            "optim.lr": {"min": 1e-5, "max": 0.1, "distribution": "log_uniform_values"},
            "augment.policy": {"values": ["none", "flip"]},
            **{name: {"value": value} for name, value in settings.items()},
        }
        content = {"name": "s", "parameters": parameters, **top}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        return ["--sweep", str(tmp_path / "s.yaml"), "--runs-dir", str(tmp_path / "runs")]

    return write


def test_a_random_search_stops_trials_early_and_lets_them_go_on(
    search_file: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, at a rung that only the best so far passes."""
    top = {"method": "random", "run_cap": 4, "seed": 1}
    flags = search_file(**top, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 9})
    here = ["--set", "train.epochs=2", "--cluster", "debug", "--max-parallel", "2"]  # one thread each
    flags += here
    assert run_command(main, flags) == 0
    sweep = load_sweep(tmp_path / "runs" / "s")
    at_rung = [trial.metrics()[0]["val/dice"] for trial in sweep.trials]
    passes = [dice >= max(at_rung[: number + 1]) for number, dice in enumerate(at_rung)]
    assert [row.status for row in trial_statuses(sweep)] == ["done" if passed else "pruned" for passed in passes]
    assert 1 <= sum(passes) < 4
    assert [len(trial.metrics()) for trial in sweep.trials] == [2 if passed else 1 for passed in passes]
    capsys.readouterr()

    submissions = (sweep.folder / "submissions.jsonl").read_text()
    assert run_command(main, flags) == 0
    assert f"{sum(passes)} done, {4 - sum(passes)} pruned, 0 queued or running, 0 to submit" in capsys.readouterr().out
    assert (sweep.folder / "submissions.jsonl").read_text() == submissions

    assert run_command(main, [*search_file(**top), *here]) == 0
    assert f"{sum(passes)} done, 0 queued or running, {4 - sum(passes)} to submit" in capsys.readouterr().out
    sweep = load_sweep(sweep.folder)
    assert [row.status for row in trial_statuses(sweep)] == ["done"] * 4
    assert [[row["epoch"] for row in trial.metrics()] for trial in sweep.trials] == [[1, 2]] * 4


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_to_run_cap_and_submits_nothing_twice(
    search_file: Callable[..., list[str]], tmp_path: Path, wait_for: Callable
) -> None:
    """Launcher and trials are killed at once, as by a node that dies."""
    flags = search_file(method="bayes", run_cap=6, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3})
    command = [sys.executable, "jobs/sweep.py", *flags, "--set", "train.epochs=3", "--cluster", "local"]
    command += ["--max-parallel", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "runs" / "s"

    def proposed() -> list[str]:
        lines = (folder / JOURNAL_NAME).read_text().splitlines() if (folder / JOURNAL_NAME).exists() else []
        return [
            row["user_attrs"]["trial_id"] for row in map(json.loads, lines) if "user_attrs" in row and "params" in row
        ]

    killed = subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(
        lambda: len(proposed()) >= 4 and any((folder / "trials" / i / "lives.json").exists() for i in proposed()[2:4])
    )
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(timeout=30)
    pids = [trial.state().pid for trial in load_sweep(folder).trials]
    for pid in filter(None, pids):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    before = proposed()

    def launch() -> str:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    launch()
    assert proposed()[: len(before)] == before
    assert len(set(proposed())) == len(proposed()) == 6
    sweep = load_sweep(folder)
    assert [trial.id for trial in sweep.trials] == proposed()
    rows = trial_statuses(sweep)
    assert {row.status for row in rows} <= {"done", "pruned"}
    for row in rows:
        pruned = load_pruned(row.trial.folder)
        assert (pruned is None) == (row.status == "done")
        if pruned:
            assert pruned.value < pruned.threshold
            assert [r["epoch"] for r in row.trial.metrics()] == list(range(1, pruned.epoch + 1))
    submissions = (folder / "submissions.jsonl").read_text()
    assert "6 of 6 trials proposed, 0 of them now" in launch()
    assert (folder / "submissions.jsonl").read_text() == submissions


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm_each_command_proposes_what_there_is_room_for(
    search_file: Callable[..., list[str]],
    tmp_path: Path,
    on_cluster: Cluster,
    wait_for: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = [*search_file(method="bayes", run_cap=3), "--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1"]
    flags += ["--mem-gb", "2", "--timeout-min", "10", "--batch", "2"]
    told = []

    def launch() -> Sweep:
        assert run_command(main, flags) == 0
        told.append(capsys.readouterr().out.splitlines()[0])
        return load_sweep(tmp_path / "runs" / "s")

    launch()
    sweep = launch()
    wait_for(lambda: {row.status for row in trial_statuses(sweep)} == {"done"})
    sweep = launch()
    wait_for(lambda: {row.status for row in trial_statuses(sweep)} == {"done"})
    launch()
    rows = [(2, 2), (2, 0), (3, 1), (3, 0)]
    assert told == [f"search: {known} of 3 trials proposed, {new} of them now" for known, new in rows]
    assert len(sweep.submissions()) == 3
