"""Masks of one file per class: every value but 0 is the class, and later classes lie on top."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.labels.masks import MaskSource, read_mask
from shards.labels.observed import LabelProblem
from shards.labels.rules import IGNORE_VALUE, LabelRules, rules_of

SIZE = (4, 6)
PICTURE = np.zeros((*SIZE, 3), np.uint8)
WITH_REST = rules_of({"class": [{"name": "floor", "rest": True}, {"name": "wall"}, {"name": "door"}]})
WITHOUT_REST = rules_of({"class": [{"name": "wall"}, {"name": "door"}]})


def layer(folder: Path, name: str, columns: slice, value: int = 255) -> Path:
    """A file whose columns have the value, and 0 elsewhere."""
    values = np.zeros(SIZE, np.uint8)
    values[:, columns] = value
    path = folder / name
    Image.fromarray(values).save(path)
    return path


def read(rules: LabelRules, *files: tuple[int, Path], nearest: bool = False):
    return read_mask(MaskSource(files, "room", "train", takes_nearest=nearest), rules, PICTURE)


def test_a_later_class_lies_on_top_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    wall = layer(tmp_path, "wall.png", slice(0, 4))
    door = layer(tmp_path, "door.png", slice(3, 5), value=1)
    expected = [[1, 1, 1, 2, 2, 0]] * 4
    for files in ([(1, wall), (2, door)], [(2, door), (1, wall)]):
        mask = read(WITH_REST, *files)
        assert mask.indices.dtype == np.uint8
        assert mask.indices.tolist() == expected
        assert mask.observed.faults == (("overlap", "room: 4 pixels are in two classes"),)
        assert mask.oddities == ("overlap",)
        assert mask.observed.pixels == (4, 12, 8, 0)


def test_what_no_file_covers_is_the_rest_or_ignored(tmp_path: Path) -> None:
    files = (0, layer(tmp_path, "wall.png", slice(0, 2))), (1, layer(tmp_path, "door.png", slice(2, 5)))
    mask = read(WITHOUT_REST, *files)
    assert mask.indices.tolist() == [[0, 0, 1, 1, 1, IGNORE_VALUE]] * 4
    assert mask.observed.faults == ()
    assert mask.observed.pixels == (8, 12, 4)


def test_three_layers_on_one_pixel_overlap_twice(tmp_path: Path) -> None:
    files = [(n, layer(tmp_path, f"{n}.png", slice(0, 1))) for n in (0, 1, 2)]
    mask = read(WITH_REST, *files)
    assert mask.indices.tolist() == [[2, 0, 0, 0, 0, 0]] * 4
    assert mask.observed.faults[0] == ("overlap", "room: 8 pixels are in two classes")


def test_an_empty_layer_covers_nothing(tmp_path: Path) -> None:
    mask = read(WITH_REST, (1, layer(tmp_path, "wall.png", slice(0, 0))), (2, layer(tmp_path, "door.png", slice(0, 3))))
    assert mask.indices.tolist() == [[2, 2, 2, 0, 0, 0]] * 4
    assert mask.observed.faults == ()


def test_a_lossy_layer_is_refused_or_named_with_the_nearest_value_taken(tmp_path: Path) -> None:
    door, wall = layer(tmp_path, "door.png", slice(4, 6)), tmp_path / "wall.png"
    values = np.array([[0, 3, 252, 255, 0, 0]] * 4, np.uint8)
    Image.fromarray(values).save(wall)
    with pytest.raises(LabelProblem, match=r"wall\.png: 8 pixels of no class, 3, 252") as refused:
        read(WITH_REST, (1, wall), (2, door))
    assert refused.value.observed.faults[0][0] == "lossy"
    mask = read(WITH_REST, (1, wall), (2, door), nearest=True)
    assert mask.indices.tolist() == [[0, 0, 1, 1, 2, 2]] * 4
    assert mask.oddities == ("lossy",)
    assert mask.observed.faults == (("lossy", f"{wall}: the nearest class was taken for 8 pixels"),)


def test_layers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    wall = layer(tmp_path, "wall.png", slice(0, 2))
    small, turned, colourful, several = (tmp_path / f"{n}.png" for n in ("small", "turned", "colourful", "several"))
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(small)
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(turned)
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(*SIZE, 3)).save(colourful)
    Image.fromarray(np.array([[0, 60, 120, 180, 240, 0]] * 4, np.uint8)).save(several)
    for path, kind, words in (
        (small, "size_differs", "is 5 x 4, its picture 6 x 4$"),
        (turned, "size_differs", "is 4 x 6, its picture 6 x 4: one of them is turned$"),
        (colourful, "colours_or_values", "has colours, and a mask of one class has two values"),
        (several, "unknown_value", "12 pixels of no class, 60"),
    ):
        with pytest.raises(LabelProblem, match=f"{path.name}:? {words}") as refused:
            read(WITH_REST, (1, wall), (2, path))
        assert refused.value.observed.faults[0][0] == kind
