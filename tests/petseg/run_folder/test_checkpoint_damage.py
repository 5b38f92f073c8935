"""Damaged checkpoints: named, passed over, and set aside."""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petseg.run_folder.checkpoint import Checkpoint, Learner, list_checkpoints, newest_loadable, save_checkpoint
from petseg.run_folder.checkpoint_files import read_state, write_state, write_tensors
from petseg.run_folder.restore import load_checkpoint, load_rank_buffers, load_weights
from shards.command import Failure
from tests.petseg.small_checkpoints import build, save, steps_in


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = [(cut, r"bytes of \d+"), (flip, "do not match their CRC-32"), (Path.unlink, "it is missing")]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "buffers.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None], why: str
) -> None:
    buffers = torch.ones(2, 3)
    for number in (1, 2, 3):
        state = {"epoch": number, "best": {"step": 1}, "scaler": None}
        save_checkpoint(tmp_path, number, Learner(*build(1)), state, buffers)
    newest = list_checkpoints(tmp_path)[-1]
    damage(newest.folder / name)

    def load_all() -> None:
        load_checkpoint(newest, Learner(*build(0)))
        load_rank_buffers(newest.folder)

    with pytest.raises(Failure, match=f"step-00000003/{re.escape(name)} is damaged .*{why}"):
        load_all()
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "cannot go on from step-00000003" in caplog.text
    assert name in caplog.text
    load_checkpoint(found, Learner(*build(0)))


def no_json(path: Path) -> None:
    path.write_text('{"format_version": 3, "st')


def other_number(path: Path) -> None:
    path.write_text(path.read_text().replace('"epoch": 3', '"epoch": 2'))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [no_json, other_number, zeros, cut])
def test_a_damaged_state_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number, best=1)
    damage(tmp_path / "step-00000003" / "state.json")
    assert steps_in(tmp_path) == [1, 2]
    assert "step-00000003/state.json is damaged" in caplog.text
    found = newest_loadable(tmp_path)
    assert found is not None
    assert found.step == 2
    with pytest.raises(Failure, match=r"step-00000003/state\.json is damaged"):
        load_weights(tmp_path / "step-00000003", build(0)[0])


def test_checkpoints_set_aside_do_not_count_as_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (2, 4, 6):
        save(tmp_path, number, best=2)
    cut(tmp_path / "step-00000006" / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        found = newest_loadable(tmp_path, set_aside=True)
    assert found is not None
    assert found.step == 4
    assert "step-00000006 is set aside as unusable-step-00000006" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002", "step-00000004", "unusable-step-00000006",
    ]  # fmt: skip
    save(tmp_path, 5, best=5)
    assert steps_in(tmp_path) == [2, 4, 5]


def test_a_checkpoint_whose_best_is_damaged_is_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run would end without its best weights; from further back it finds them again."""
    for number, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
        save(tmp_path, number, best)
    flip(tmp_path / "step-00000003" / "model.safetensors")
    assert newest_loadable(tmp_path) is None  # step 1 and 2 were deleted when 3 and 4 stood
    assert "cannot go on from step-00000004" in caplog.text
    assert newest_loadable(tmp_path, set_aside=True) is None
    save(tmp_path, 1, best=1)
    assert steps_in(tmp_path) == [1]


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other tensors with the size and the CRC-32 that go with them: a CRC is no seal."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    state = json.loads((folder / "state.json").read_text())
    state.pop("crc32")
    state["files"]["model.safetensors"] = write_tensors(tensors, folder / "model.safetensors")
    write_state(state, folder / "state.json")


def other_type(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].to(torch.int32)


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name] = tensors[name][:1].clone()


def other_name(tensors: dict[str, torch.Tensor]) -> None:
    tensors["evil"] = tensors.pop(next(iter(tensors)))


@pytest.mark.parametrize("change", [other_type, other_shape, other_name])
def test_tensors_that_are_not_the_models_are_named(tmp_path: Path, change: Callable) -> None:
    save(tmp_path, 1, 1)
    (folder,) = tmp_path.iterdir()
    rewrite(folder, change)
    with pytest.raises(Failure, match=rf"{folder}/model\.safetensors was altered after it was saved"):
        load_weights(folder, build(0)[0])


def test_a_type_that_safetensors_does_not_know(tmp_path: Path) -> None:
    save(tmp_path, 1, 1)
    (folder,) = tmp_path.iterdir()
    content = (folder / "model.safetensors").read_bytes().replace(b'"F32"', b'"F99"', 1)
    (folder / "model.safetensors").write_bytes(content)
    state = json.loads((folder / "state.json").read_text())
    state.pop("crc32")
    state["files"]["model.safetensors"]["crc32"] = zlib.crc32(content)
    write_state(state, folder / "state.json")
    with pytest.raises(Failure, match=r"model\.safetensors was altered .*its tensors cannot be read"):
        load_weights(folder, build(0)[0])


@pytest.mark.parametrize("gone", ["files", "best", "optimizer_groups"])
def test_a_state_that_lacks_a_part_is_named(tmp_path: Path, gone: str) -> None:
    save(tmp_path, 1, 1)
    (folder,) = tmp_path.iterdir()
    state = json.loads((folder / "state.json").read_text())
    for name in ("crc32", gone):
        state.pop(name)
    write_state(state | ({"optimizer_groups": []} if gone == "optimizer_groups" else {}), folder / "state.json")
    with pytest.raises(Failure, match=rf"{folder}/state\.json was altered"):
        load_checkpoint(Checkpoint(folder, 1, read_state(folder)), Learner(*build(0)))
