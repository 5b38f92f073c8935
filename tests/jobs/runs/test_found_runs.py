"""Runs that lie beside each other as a sweep, and what a name means that leads to something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.design.shard_sets import ShardSet
from jobs.runs.single_runs import find_runs, find_sweep_with_jobs, read_single_runs
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.layout import claim_folder
from tests.jobs.written_trials import sweep_of

Claim = Callable[..., Path]
A, B = "a" * 64, "b" * 64


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    """Begins a run in `runs/single`."""

    def begun(name: str, manifest_hash: str = A, shards: str = "set/a", **values: Any) -> Path:
        named = {key.replace("__", "."): value for key, value in values.items()}
        folder = tmp_path / "runs" / "single" / name
        claim_folder(with_values(RunConfig(), {"data.shards": shards, **named}), manifest_hash, folder)
        return folder

    return begun


def test_runs_differ_in_the_fields_that_are_not_the_same_in_all(claim: Claim, tmp_path: Path) -> None:
    one, two, three = claim("1"), claim("2", train__seed=4), claim("3", model__width=8)
    sweep = find_runs("single", tmp_path / "runs")
    width, seed = RunConfig().model.width, RunConfig().train.seed
    assert sweep.axes == {"model.width": [width, 8], "train.seed": [seed, 4]}
    assert [(trial.id, trial.folder) for trial in sweep.trials] == [("1", one), ("2", two), ("3", three)]
    assert [trial.axes for trial in sweep.trials] == [
        {"model.width": width, "train.seed": seed}, {"model.width": width, "train.seed": 4},
        {"model.width": 8, "train.seed": seed},
    ]  # fmt: skip
    assert (sweep.name, sweep.folder, sweep.manifest_hash, sweep.shards) == ("single", one.parent, A, "set/a")
    assert sweep.shard_sets == (ShardSet(A, "set/a"),)


def test_a_field_that_some_runs_lack_tells_them_apart(claim: Claim) -> None:
    """They are of another version."""
    one, two = claim("1"), claim("2")
    content = json.loads((two / "config.json").read_text())
    del content["identity"]["train"]["seed"]
    (two / "config.json").write_text(json.dumps(content))
    sweep = read_single_runs(one.parent, [one, two])
    assert sweep.axes == {"train.seed": [RunConfig().train.seed]}
    assert [trial.axes for trial in sweep.trials] == [{"train.seed": RunConfig().train.seed}, {}]


def test_runs_on_two_sets_have_them_on_an_axis_without_secrets(claim: Claim) -> None:
    runs = [claim("1"), claim("2", B, "https://me:word@host/b"), claim("3", B, "https://me:word@host/b")]
    sweep = read_single_runs(runs[0].parent, runs)
    assert sweep.axes == {"data.shards": ["set/a", "https://host/b"]}
    assert [trial.manifest_hash for trial in sweep.trials] == ["", B, B]
    assert [sweep.hash_of(trial) for trial in sweep.trials] == [A, B, B]
    assert sweep.shard_sets == (ShardSet(A, "set/a"), ShardSet(B, "https://host/b"))


def test_damaged_runs_are_left_out_and_where_all_are_it_is_said(claim: Claim, tmp_path: Path) -> None:
    good, bad, empty = claim("1"), claim("2"), claim("3", shards="x")
    (bad / "config.json").write_text("{")
    content = json.loads((empty / "config.json").read_text())
    content["config"]["data"]["shards"] = ""
    (empty / "config.json").write_text(json.dumps(content))
    assert [trial.folder for trial in find_runs(str(good.parent), Path()).trials] == [good]
    (good / "config.json").write_text("{")
    with pytest.raises(ValueError, match="can be read") as failed:
        find_runs("single", tmp_path / "runs")
    assert str(failed.value) == f"no run in {good.parent} can be read: each config.json there is damaged"


def test_a_sweep_goes_before_runs_and_a_folder_before_a_name(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim("1")
    lab = sweep_of(tmp_path / "runs" / "lab", 1)
    monkeypatch.chdir(tmp_path / "runs")
    assert find_runs("lab", tmp_path / "none").folder == Path("lab")
    assert find_runs("lab", tmp_path / "runs").trials == find_runs("lab", tmp_path).trials
    assert find_sweep_with_jobs("lab", tmp_path, "x").name == lab.name
    monkeypatch.chdir(tmp_path)
    assert find_runs("lab", tmp_path / "runs").folder == lab.folder
    assert find_sweep_with_jobs("lab", tmp_path / "runs", "x").folder == lab.folder


def test_a_command_about_jobs_says_what_does_for_runs(claim: Claim, tmp_path: Path) -> None:
    run = claim("1")
    look = f"see also `python jobs/status.py {run.parent}`"
    for name, what in (("single", f"{run.parent} holds runs"), (str(run), f"{run} is a run")):
        with pytest.raises(ValueError, match="not a sweep") as refused:
            find_sweep_with_jobs(name, tmp_path / "runs", "press Ctrl-C")
        assert str(refused.value) == f"{what} of petseg/train.py, not a sweep: press Ctrl-C; {look}"
    with pytest.raises(
        ValueError, match=f"^{run} is one run: name the folder that it lies in, {run.parent}, to see all"
    ):
        find_runs(str(run), tmp_path)
    with pytest.raises(ValueError, match=r"^no sweep in "):
        find_sweep_with_jobs("none", tmp_path / "runs", "x")


def test_trials_and_their_folder_lead_to_their_sweep(tmp_path: Path) -> None:
    lab = sweep_of(tmp_path / "lab", 1)
    trials = lab.folder / "trials"
    for folder in (trials / "none", lab.trials[0].folder):
        for find in (find_runs, lambda name, runs: find_sweep_with_jobs(name, runs, "x")):
            with pytest.raises(ValueError, match=f"^{folder} lies in the sweep {lab.folder}: name that$"):
                find(str(folder), tmp_path)


def test_a_prediction_is_no_sweep(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "jobs" / "parts").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^no sweep in "):
        find_runs(str(out), tmp_path)
    (out / "predict.json").touch()
    for name in (str(out), "out", str(out / "jobs")):
        for find in (find_runs, lambda name, runs: find_sweep_with_jobs(name, runs, "x")):
            with pytest.raises(ValueError, match=f"^{out} holds a prediction, not a sweep: run the command of"):
                find(name, tmp_path)
