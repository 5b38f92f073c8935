"""Checkpoints: what is in them, which are kept, and going on from them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from petseg.run_folder.checkpoint import Learner, list_checkpoints, newest_loadable, save_checkpoint
from petseg.run_folder.restore import load_checkpoint
from tests.petseg.small_checkpoints import build, save, step, steps_in


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 2, best=2, steps=2)
    model, optimizer = build(0)
    load_checkpoint(list_checkpoints(tmp_path)[-1], Learner(model, optimizer))
    step(model, optimizer, 2)
    unbroken, _ = build(4)
    for (name, ours), theirs in zip(model.state_dict().items(), unbroken.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    moment = next(s["exp_avg"] for p, s in optimizer.state.items() if p.ndim == 4 and p.shape[1] > 1)
    assert moment.is_contiguous(memory_format=torch.channels_last)


def test_the_two_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for number, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(tmp_path, number, best)
    assert steps_in(tmp_path) == [2, 4, 5]


def test_a_half_written_checkpoint_is_skipped(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / ".step-00000003.tmp").mkdir()
    assert steps_in(tmp_path) == [1]


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_another_format_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    with pytest.raises(ValueError, match="step-00000001 has checkpoint format 9, not 3"):
        list_checkpoints(tmp_path)


def test_the_best_of_the_previous_checkpoint_is_kept_too(tmp_path: Path) -> None:
    """Should the newest be damaged, the one before it has what it names."""
    for number, best in ((1, 1), (2, 1), (3, 1), (4, 4)):
        save(tmp_path, number, best)
    assert steps_in(tmp_path) == [1, 3, 4]
    save(tmp_path, 5, best=4)
    assert steps_in(tmp_path) == [4, 5]


def test_the_same_step_is_saved_beside_the_old_checkpoint(tmp_path: Path) -> None:
    for _ in range(3):
        save(tmp_path, 7, best=7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007.2"]
    assert steps_in(tmp_path) == [7]


def test_files_are_as_readable_as_the_folder(tmp_path: Path) -> None:
    save(tmp_path, 1, best=1)
    (folder,) = tmp_path.iterdir()
    expected = folder.stat().st_mode & 0o666
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("model.safetensors", "optimizer.safetensors", "state.json"), expected
    )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_loaded_checkpoint_is_not_held_open(tmp_path: Path) -> None:
    """On NFS a file in use cannot be deleted, and a deleted one that is mapped kills its reader."""
    save(tmp_path, 1, best=1)
    model, optimizer = build(0)
    load_checkpoint(list_checkpoints(tmp_path)[-1], Learner(model, optimizer))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_checkpoint_before_any_validation_needs_no_best(tmp_path: Path) -> None:
    save(tmp_path, 3, best=0)
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.step == 3
    assert newest_loadable(tmp_path / "nothing") is None


def test_checkpoints_come_and_go_while_others_read(tmp_path: Path) -> None:
    learner = Learner(*build(1))
    state = {"best": {"step": 0}}
    save_checkpoint(tmp_path, 1, learner, state)

    def train() -> None:
        for number in range(2, 21):
            save_checkpoint(tmp_path, number, learner, state)

    trainer = threading.Thread(target=train)
    trainer.start()
    seen = [1]
    while trainer.is_alive():
        seen.append(list_checkpoints(tmp_path)[-1].step)
    trainer.join()
    assert seen == sorted(seen)
    assert steps_in(tmp_path) == [19, 20]
