"""per_image.npz as the report reads it: what fits is taken, and what does not is as if it were not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.reporting.statistics.per_image import read_dice, read_per_image

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
