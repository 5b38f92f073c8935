"""Which checkpoint of a run is taken, and which go when one is saved."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petseg.optim.ema import Ema
from petseg.run_folder.checkpoint import (
    Checkpoint,
    choose_checkpoint,
    list_checkpoints,
    newest_loadable,
    save_checkpoint,
)
from petseg.run_folder.checkpoint_files import read_state
from petseg.run_folder.restore import load_checkpoint
from shards.cause import Cause
from shards.command import Failure
from tests.petseg.small_checkpoints import least, save_least, steps_in


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_best_or_the_last_checkpoint_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(ValueError, match=f"^{tmp_path} has no checkpoint yet: train first, or wait for its"):
        choose_checkpoint(tmp_path, "best")
    for number, best in ((1, 1), (2, 2), (3, 2)):
        save_least(folder, number, best)
    assert [choose_checkpoint(tmp_path, which).step for which in ("best", "last")] == [2, 3]
    shutil.rmtree(folder / "step-00000002")
    with pytest.raises(Failure, match=rf"^{folder} lacks the best checkpoint, step 2: take --weights last$") as error:
        choose_checkpoint(tmp_path, "best")
    assert error.value.cause == Cause.DATA
    assert choose_checkpoint(tmp_path, "last") == Checkpoint(
        folder / "step-00000003", 3, read_state(folder / "step-00000003")
    )


def test_of_a_step_that_was_saved_again_the_latest_counts(tmp_path: Path) -> None:
    """Also the tenth time, whose name comes before that of the second one in an alphabet."""
    save_least(tmp_path, 3, best=3)
    (tmp_path / "step-00000003").rename(tmp_path / "step-00000003.2")
    shutil.copytree(tmp_path / "step-00000003.2", tmp_path / "step-00000003.10")
    assert [found.folder.name for found in list_checkpoints(tmp_path)] == ["step-00000003.10"]
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.folder.name == "step-00000003.10"
    save_least(tmp_path, 3, best=3)
    assert names_in(tmp_path) == ["step-00000003.11"]


def test_folders_that_are_no_checkpoints_are_passed_over(tmp_path: Path) -> None:
    save_least(tmp_path, 1, best=1)
    for name in ("step-2", "step-00000002.old", "step-000000003", "unusable-step-00000004", "old-step-00000005"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    assert steps_in(tmp_path) == [1]


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-00000001.tmp" / "deep").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000009.3.tmp").mkdir()
    save_least(tmp_path / "checkpoints", 2, best=2)
    assert names_in(tmp_path / "checkpoints") == ["step-00000002"]


def test_a_save_deletes_nothing_later_than_itself(tmp_path: Path) -> None:
    """As of a run that went back, because later checkpoints could not be loaded; 9 names 4 as its best."""
    for number, best in ((1, 1), (4, 4), (9, 4)):
        save_least(tmp_path, number, best)
    for number in (2, 3):
        save_least(tmp_path, number, best=2)
    assert steps_in(tmp_path) == [2, 3, 4, 9]


def test_a_checkpoint_that_is_set_aside_again_takes_the_place_of_the_former(tmp_path: Path) -> None:
    for content in (b"former", b"latter"):
        save_least(tmp_path, 1, best=1)
        (tmp_path / "step-00000001" / "model.safetensors").write_bytes(content)
        assert newest_loadable(tmp_path, set_aside=True) is None
    assert names_in(tmp_path) == ["unusable-step-00000001"]
    assert (tmp_path / "unusable-step-00000001" / "model.safetensors").read_bytes() == b"latter"


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("step-00000002", "the best checkpoint so far, of step 2, is gone"),
        ("step-00000002/state.json", "step-00000002/state.json is damaged (it is missing)"),
    ],
)
def test_a_run_goes_on_from_before_the_checkpoint_whose_best_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: str, why: str
) -> None:
    for number, best in ((1, 1), (2, 2), (4, 2)):
        save_least(tmp_path, number, best)
    save_least(tmp_path, 1, best=1)
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with caplog.at_level(logging.WARNING):
        found = newest_loadable(tmp_path, set_aside=True)
    assert found is not None
    assert found.step == 1
    assert caplog.records[0].getMessage().startswith("cannot go on from step-00000004: ")
    assert why in caplog.records[0].getMessage()
    assert "unusable-step-00000004" in names_in(tmp_path)


def test_averages_are_kept_beside_the_weights_that_training_resumes(tmp_path: Path) -> None:
    learner = least(1)
    ema = Ema(learner.model)
    with torch.no_grad():
        ema.tensors["weight"].add_(1)
    save_checkpoint(tmp_path, 1, replace(learner, ema=ema), {"best": {"step": 1}})
    (found,) = list_checkpoints(tmp_path)
    averaged, trained = (load_file(found.folder / f"{name}.safetensors")["weight"] for name in ("model", "training"))
    assert torch.equal(averaged, trained + 1)
    resumed = least()
    resumed = replace(resumed, ema=Ema(resumed.model))
    assert resumed.ema is not None
    load_checkpoint(found, resumed)
    assert torch.equal(resumed.model.state_dict()["weight"], trained)
    assert torch.equal(resumed.ema.tensors["weight"], averaged)
    (found.folder / "training.safetensors").unlink()
    with pytest.raises(Failure, match=r"training\.safetensors is damaged \(it is missing\)"):
        load_checkpoint(found, resumed)


def test_a_later_checkpoint_that_cannot_be_read_is_not_deleted_either(tmp_path: Path) -> None:
    for number in (1, 9):
        save_least(tmp_path, number, best=1)
    (tmp_path / "step-00000009" / "state.json").write_text("{")
    save_least(tmp_path, 2, best=1)
    assert names_in(tmp_path) == ["step-00000001", "step-00000002", "step-00000009"]
