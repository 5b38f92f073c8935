"""jobs/best.py: which trials of a sweep it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.best import best_trials, main
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


def test_a_sweep_without_a_result_says_where_to_look(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.plan()
    assert run_command(main, [str(lab.folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no trial of {lab.folder} has finished: `python jobs/status.py")
