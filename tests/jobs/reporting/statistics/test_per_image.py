"""per_image.npz as the report reads it: what fits is taken, and what does not is as if it were not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.reporting.statistics.per_image import read_confusion, read_dice, read_per_image, read_seeds
from jobs.reporting.statistics.records import Group, Record
from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import Result
from shards.command import printable

KEYS = np.array(["a", "b"])
ONE = np.array([[2, 1, 1], [0, 0, 0]])  # (N, 3): true positives, false positives, false negatives
TWO = np.array([[[2, 1, 1], [0, 0, 0]], [[0, 1, 0], [3, 0, 0]]])  # (N, C, 3)


def save(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "per_image.npz", **{f"val/{name}": value for name, value in arrays.items()})
    return folder


def test_pictures_of_one_class_and_of_several(tmp_path: Path) -> None:
    one = read_per_image(save(tmp_path, keys=KEYS, counts=ONE, groups=np.array(["v", "w"])), "val")
    assert one is not None
    assert (one.keys, one.groups, one.counts.shape) == (("a", "b"), ("v", "w"), (2, 1, 3))
    assert one.dice.tolist() == [4 / 6, 1.0]
    assert read_per_image(tmp_path, "test") is None
    two = read_dice(save(tmp_path, keys=KEYS, counts=TWO), "val")
    assert two is not None
    assert (two[0], two[1].tolist()) == (("a", "b"), [4 / 6, 0.5])


def test_groups_that_are_not_of_these_pictures_are_left_out(tmp_path: Path) -> None:
    read = read_per_image(save(tmp_path, keys=KEYS, counts=ONE, groups=np.array(["v"])), "val")
    assert read is not None
    assert read.groups == ()


@pytest.mark.parametrize(
    "arrays",
    [
        {"keys": KEYS, "counts": ONE[:1]}, {"keys": KEYS[:1], "counts": ONE}, {"keys": KEYS[None], "counts": ONE},
        {"keys": KEYS, "counts": ONE[..., :2]}, {"keys": KEYS, "counts": ONE[:, 0]},
        {"keys": KEYS, "counts": TWO[..., None]},
        {"keys": KEYS, "counts": ONE - 1}, {"keys": KEYS, "counts": ONE / np.nan}, {"keys": KEYS},
        {"keys": KEYS[:0], "counts": ONE[:0]},
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_as_if_they_were_not_there(tmp_path: Path, arrays: dict[str, Any]) -> None:
    assert read_per_image(save(tmp_path, **arrays), "val") is None
    assert read_dice(tmp_path, "val") is None


def test_pictures_and_their_groups_are_those_of_the_split(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "per_image.npz",
        **{"val/keys": KEYS, "val/counts": ONE, "val/groups": np.array(["v", "w"])},
        **{"test/keys": KEYS[::-1], "test/counts": TWO[::-1], "test/groups": np.array(["x", "y"])},
    )
    test = read_per_image(tmp_path, "test")
    assert test is not None
    assert (test.keys, test.groups, test.counts.tolist()) == (("b", "a"), ("x", "y"), TWO[::-1].tolist())


def test_a_confusion_is_square_and_counts_pixels(tmp_path: Path) -> None:
    pixels = np.array([[5, 1], [0, 7]])
    save(tmp_path, confusion=pixels.astype(np.int32))
    read = read_confusion(tmp_path, "val")
    assert read is not None
    assert (read.dtype, read.tolist()) == (np.int64, [[5, 1], [0, 7]])
    assert read_confusion(tmp_path, "test") is None
    zero = read_confusion(save(tmp_path, confusion=0 * pixels), "val")
    assert zero is not None
    for wrong in (pixels[:1], pixels[0], pixels[None], pixels - 1, np.array(["a"])):
        assert read_confusion(save(tmp_path, confusion=wrong), "val") is None


def test_a_file_that_is_damaged_or_a_link_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """What a link points to is not the run's own; a pickle could be code."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    folder.mkdir()
    save(elsewhere, keys=KEYS, counts=ONE, confusion=np.eye(2))
    path = folder / "per_image.npz"
    path.symlink_to(elsewhere / "per_image.npz")
    assert read_per_image(elsewhere, "val") is not None
    assert read_per_image(folder, "val") is read_confusion(folder, "val") is None
    path.unlink()
    whole = (elsewhere / "per_image.npz").read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2], whole.replace(b"NUMPY", b"BUMPY")):
        path.write_bytes(damaged)
        assert read_per_image(folder, "val") is read_confusion(folder, "val") is None
    save(folder, keys=np.array(["a", {}], dtype=object), counts=ONE, confusion=np.array([[{}]], dtype=object))
    assert read_per_image(folder, "val") is read_confusion(folder, "val") is None


def test_names_that_a_terminal_would_obey_are_made_printable(tmp_path: Path) -> None:
    """One of many is enough to look at each of them."""
    keys, groups = np.array(["a", "b\x1b[2J"]), np.array(["v\x07", "w"])
    read = read_per_image(save(tmp_path, keys=keys, counts=ONE, groups=groups), "val")
    assert read is not None
    assert (read.keys, read.groups) == (("a", printable("b\x1b[2J")), (printable("v\x07"), "w"))
    assert not any("\x1b" in name or "\x07" in name for name in read.keys + read.groups)


def test_seeds_are_the_finished_trials_that_were_measured(tmp_path: Path) -> None:
    """In the order of the trials: one has no pictures of this split, one is still running."""
    result = Result("x", {"val/dice": 0.5}, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)
    records = []
    for name, finished in (("first", True), ("without", True), ("running", False), ("last", True)):
        folder = tmp_path / name
        folder.mkdir()
        if name != "without":
            save(folder, keys=np.array([name, "b"]), counts=ONE)
        status = TrialStatus(Trial(name, {}, folder), "done" if finished else "running")
        records.append(Record(status, {}, None, result if finished else None, []))
    assert [one.keys for one in read_seeds(Group({}, tuple(records)), "val")] == [("first", "b"), ("last", "b")]
    assert read_seeds(Group({}, tuple(records)), "test") == []
