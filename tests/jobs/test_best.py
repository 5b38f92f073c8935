"""jobs/best.py: which trials of a sweep it takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petseg
from jobs.best import main
from jobs.reporting.best_trials import best_trials
from shards.command import run_command
from tests.jobs.reporting.written_sweep import DICE, Lab, finish


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "shards").mkdir()
    return Lab(tmp_path / "runs" / "lab", tmp_path / "shards")


def test_the_best_seed_of_the_best_cell_is_chosen(lab: Lab) -> None:
    """By the mean over seeds: the highest single Dice of all is of another cell."""
    sweep = lab.plan()
    for trial in sweep.trials:
        cell = (trial.axes["model.arch"], trial.axes["augment.policy"])
        dice = DICE[cell][trial.axes["train.seed"]]
        finish(trial, 0.95 if cell == ("resnet34_unet", "elastic") and trial.axes["train.seed"] == 0 else dice)
    (one,) = best_trials(sweep, all_seeds=False)
    assert one.axes == {"model.arch": "unet", "augment.policy": "none", "train.seed": 2}
    seeds = best_trials(sweep, all_seeds=True)
    assert [trial.axes["train.seed"] for trial in seeds] == [0, 1, 2]
    assert {trial.axes["augment.policy"] for trial in seeds} == {"none"}


@pytest.mark.parametrize(
    ("seeds", "count", "average"), [("best", 1, False), ("ensemble", 3, False), ("average", 3, True)]
)
def test_seeds_become_one_file_as_they_are_wanted(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: str, count: int, average: bool
) -> None:
    for trial in lab.plan().trials:
        cell = (trial.axes["model.arch"], trial.axes["augment.policy"])
        finish(trial, DICE[cell][trial.axes["train.seed"]])
    written: list[tuple[Any, ...]] = []
    monkeypatch.setattr("petseg.inference.winner.write_winner", lambda *given: written.append(given))
    assert run_command(main, [str(lab.folder), "--seeds", seeds, "--out", str(tmp_path / "w.safetensors")]) == 0
    ((folders, *how),) = written
    assert len(folders) == count
    assert how == [tmp_path / "w.safetensors", "best", average, None]


def test_a_sweep_without_a_result_says_where_to_look(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.plan()
    assert run_command(main, [str(lab.folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no trial of {lab.folder} has finished: `python jobs/status.py")


def test_the_winner_of_a_sweep_that_an_earlier_version_wrote_predicts(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).with_name("old_sweep"), tmp_path / "old")
    assert run_command(main, [str(tmp_path / "old"), "--out", str(tmp_path / "winner.safetensors")]) == 0
    model = petseg.load(tmp_path / "winner.safetensors")
    (origin,) = model.header.runs
    assert origin.trial_id == "0882af0e7e"
    assert "val/dice" in origin.metrics
    assert model.predict(np.zeros((40, 60, 3), np.uint8)).mask.shape == (40, 60)
