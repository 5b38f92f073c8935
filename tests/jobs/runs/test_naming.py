"""The names of a sweep's trials in wandb: by the sweep, and by the folder of a trial alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.node.task import others
from jobs.runs.naming import name_in_place, trial_name
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Sweep
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.layout import claim_folder, load_config
from petseg.tracking.naming import RunName, save_name
from tests.jobs.written_trials import sweep_of

CONFIG = with_values(RunConfig(), {"model.width": 16, "train.seed": 2})


def sweep_with_a_trial(tmp_path: Path) -> tuple[Sweep, Path]:
    sweep = replace(sweep_of(tmp_path / "my lab", 3), axes={"model.width": [16, 64], "train.seed": [0, 1, 2]})
    save_sweep(sweep)
    folder = sweep.trials[2].folder
    (folder / "config.json").unlink()
    claim_folder(CONFIG, "0" * 64, folder)
    return sweep, folder


def test_a_trial_is_one_run_of_its_sweep(tmp_path: Path) -> None:
    sweep, _ = sweep_with_a_trial(tmp_path)
    assert trial_name(sweep, "0123456789", CONFIG) == RunName(
        "my lab-0123456789",
        "my lab",
        tags=("unet", "none", "seed2"),
        label="unet none width 16 seed 2",
        program="jobs/sweep.py",
        resend=f"`python jobs/sync.py '{sweep.folder}'` sends it later",
    )


def test_a_trial_of_an_earlier_version_has_the_same_name_where_it_lies(tmp_path: Path) -> None:
    sweep, folder = sweep_with_a_trial(tmp_path)
    assert name_in_place(folder, CONFIG) == trial_name(sweep, load_config(folder)["trial_id"], CONFIG)


def test_the_name_that_a_trial_was_trained_under_goes_before_the_place(tmp_path: Path) -> None:
    _, folder = sweep_with_a_trial(tmp_path)
    save_name(RunName("moved-0123456789", "moved"), folder)
    assert name_in_place(folder, CONFIG) == RunName("moved-0123456789", "moved")


def test_a_run_beside_no_sweep_is_a_single_one(tmp_path: Path) -> None:
    for folder in (tmp_path / "single" / "x", tmp_path / "trials" / "x"):
        claim_folder(CONFIG, "0" * 64, folder)
        name = name_in_place(folder, CONFIG)
        assert (name.id, name.group, name.program) == (load_config(folder)["trial_id"], "", "petseg/train.py")


def test_a_trial_is_compared_with_all_others_of_its_folder(tmp_path: Path) -> None:
    sweep, _ = sweep_with_a_trial(tmp_path)
    first, second, third = sweep.trials
    assert others(second) == [first.folder, third.folder]
    added = first.folder.with_name("added")
    added.mkdir()
    assert others(second) == [first.folder, third.folder, added]
