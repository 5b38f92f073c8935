"""The files of one checkpoint: what is recorded of them, and what is said of files that are not as they were saved."""

from __future__ import annotations

import errno
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from petseg.optim.ema import Ema
from petseg.run_folder import checkpoint_files
from petseg.run_folder.checkpoint import Checkpoint, list_checkpoints, save_checkpoint
from petseg.run_folder.checkpoint_files import load_tensors, read_state, verify, write_state, write_tensors
from petseg.run_folder.restore import load_checkpoint, load_rank_buffers
from shards.cause import Cause
from shards.command import Failure
from tests.petseg.small_checkpoints import least, save_least


def rewrite_state(folder: Path, **changes: Any) -> None:
    """Other content with the CRC-32 that goes with it."""
    content = json.loads((folder / "state.json").read_text()) | changes
    write_state({name: value for name, value in content.items() if name != "crc32"}, folder / "state.json")


def test_what_is_recorded_is_of_the_whole_file(tmp_path: Path) -> None:
    """It is read a mebibyte at a time."""
    path = tmp_path / "a.safetensors"
    recorded = write_tensors({"a": torch.arange(700_000, dtype=torch.float32)}, path)
    content = path.read_bytes()
    assert len(content) > 2 << 20
    assert recorded == {"num_bytes": len(content), "crc32": zlib.crc32(content)}


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [
        ("I/O error: No space left on device (os error 28)", OSError, errno.ENOSPC),
        ("IoError(Os { code: 122, kind: QuotaExceeded })", OSError, errno.EDQUOT),
        ("HeaderTooLarge", SafetensorError, None),
    ],
)
def test_what_safetensors_says_of_the_disk_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception], code: int | None
) -> None:
    def broken(*_: object) -> None:
        raise SafetensorError(said)

    monkeypatch.setattr(checkpoint_files, "save_file", broken)
    with pytest.raises(kind, match=re.escape(said)) as error:
        write_tensors({}, tmp_path / "a.safetensors")
    assert getattr(error.value, "errno", None) == code
    assert getattr(error.value, "filename", None) == (code and str(tmp_path / "a.safetensors"))


def test_a_checkpoint_is_whole_by_each_of_its_files(tmp_path: Path) -> None:
    folder = save_least(tmp_path, 1, best=1)
    state = verify(folder)
    assert state == read_state(folder)
    assert set(state["files"]) == {"model.safetensors", "optimizer.safetensors"}
    assert "crc32" not in state
    for name in state["files"]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        with pytest.raises(Failure, match=rf"{name} is damaged \({len(content) - 1} bytes of {len(content)}\): train"):
            verify(folder)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(("version", "said"), [(2, "format 2, not 3: go on with"), (4, "format 4, not 3: go on with")])
def test_checkpoints_of_other_formats_are_not_called_damaged(tmp_path: Path, version: int, said: str) -> None:
    folder = save_least(tmp_path, 1, best=1)
    rewrite_state(folder, format_version=version)
    with pytest.raises(ValueError, match=f"^{folder} has checkpoint {said} the petseg that wrote it, or choose anoth"):
        read_state(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format_version": "3"}', '{"format_version": null}', "null"])
def test_a_state_of_no_format_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(Failure, match=r"state\.json is damaged \(its content does not match its CRC-32\)") as error:
        read_state(tmp_path)
    assert error.value.cause == Cause.DATA


@pytest.mark.parametrize(
    "change", [{"files": []}, {"best": 1}, {"best": {}}, {"best": {"step": 1.0}}, {"best": {"step": True}}]
)
def test_a_state_without_files_or_a_best_step_was_altered(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = save_least(tmp_path, 1, best=1)
    rewrite_state(folder, **change)
    with pytest.raises(Failure, match=rf"state\.json was altered .*: delete {folder} to go on from the ") as error:
        read_state(folder)
    assert error.value.cause == Cause.DATA


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (errno.EIO, Failure, r"state\.json is damaged \(the disk cannot read it\)"),
        (errno.EACCES, PermissionError, "the disk's own words"),
    ],
)
def test_what_the_disk_cannot_read_is_damaged_and_what_one_may_not_read_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], said: str
) -> None:
    def broken(path: Path, follow: bool = True) -> bytes:
        raise OSError(code, "the disk's own words", str(path))

    monkeypatch.setattr(checkpoint_files, "read_regular", broken)
    with pytest.raises(kind, match=said):
        read_state(tmp_path)


def test_a_link_in_place_of_a_file_is_damage(tmp_path: Path) -> None:
    folder = save_least(tmp_path, 1, best=1)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match=r"model\.safetensors is damaged \(.*link"):
        load_tensors(folder, "model.safetensors")


def test_a_file_that_the_state_does_not_list_is_not_read(tmp_path: Path) -> None:
    folder = save_least(tmp_path, 1, best=1)
    save_file({"a": torch.zeros(1)}, folder / "more.safetensors")
    with pytest.raises(Failure, match=r"state\.json was altered .* \(it does not list more\.safetensors\)"):
        load_tensors(folder, "more.safetensors")
    assert load_rank_buffers(folder) is None


def replace_tensors(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Other tensors with the size and the CRC-32 that go with them."""
    files = read_state(folder)["files"] | {name: write_tensors(tensors, folder / name)}
    rewrite_state(folder, files=files)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x.exp_avg", [1]), ("9999.exp_avg", [1]), ("0.exp_avg", [1]), ("0.exp_avg", []), ("0.step", [2]),
        ("0.exp_avg_sq", [2, 1]),
    ],
)  # fmt: skip
def test_a_moment_that_fits_no_weight_is_named(tmp_path: Path, name: str, shape: list[int]) -> None:
    """Fused optimizers would write beyond one that is too small."""
    folder = save_least(tmp_path, 1, best=1)
    moments = load_tensors(folder, "optimizer.safetensors")
    replace_tensors(folder, "optimizer.safetensors", moments | {name: torch.zeros(shape)})
    said = re.escape(f"({name.partition('.')[2]} of shape {shape} fits no weight)")
    with pytest.raises(Failure, match=rf"optimizer\.safetensors was altered after it was saved {said}"):
        load_checkpoint(Checkpoint(folder, 1, read_state(folder)), least())


def test_averages_of_another_shape_are_named(tmp_path: Path) -> None:
    learner = least(1)
    learner = replace(learner, ema=Ema(learner.model))
    save_checkpoint(tmp_path, 1, learner, {"best": {"step": 1}})
    (found,) = list_checkpoints(tmp_path)
    replace_tensors(found.folder, "model.safetensors", {"weight": torch.zeros(2, 2)})
    with pytest.raises(Failure, match=r"step-00000001/model\.safetensors was altered after it was saved"):
        load_checkpoint(Checkpoint(found.folder, 1, read_state(found.folder)), learner)


@pytest.mark.parametrize("tensors", [{}, {"buffers": torch.zeros(3)}, {"buffers": torch.zeros(0, 3)}])
def test_statistics_that_are_of_no_ranks_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder = save_least(tmp_path, 1, best=1)
    replace_tensors(folder, "buffers.safetensors", tensors)
    with pytest.raises(Failure, match=r"buffers\.safetensors was altered .*\(it has no rows of ranks\)"):
        load_rank_buffers(folder)


def test_a_checkpoint_that_is_whole_is_loaded_with_its_name(tmp_path: Path) -> None:
    folder = save_least(tmp_path, 1, best=1)
    (found,) = list_checkpoints(tmp_path)
    assert (found.folder, found.step, found.state) == (folder, 1, read_state(folder))


def test_the_statistics_of_each_rank_are_read_back(tmp_path: Path) -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    save_checkpoint(tmp_path, 1, least(1), {"best": {"step": 0}}, rows)
    (found,) = list_checkpoints(tmp_path)
    buffers = load_rank_buffers(found.folder)
    assert buffers is not None
    assert torch.equal(buffers, rows)
