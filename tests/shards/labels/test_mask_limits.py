"""Mask files and faults of masks at the limits from which on they are told apart."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.cause import Cause
from shards.command import Failure
from shards.labels import masks
from shards.labels.masks import Decoded, MaskSource, decode_mask, index_table, observe, read_mask
from shards.labels.observed import LabelProblem, Observed, count_pixels
from shards.labels.rules import LabelRules, rules_of

SOURCE = MaskSource(((None, Path("m.png")),), "m", "val")


def by_values(*values: int, ignore: tuple[int, ...] = ()) -> LabelRules:
    return rules_of({"ignore": list(ignore), "class": [{"name": f"c{value}", "values": [value]} for value in values]})


def read(path: Path, rules: LabelRules, picture: np.ndarray | None = None, **options: bool) -> Any:
    if picture is None:
        with Image.open(path) as image:
            picture = np.zeros((image.height, image.width, 3), np.uint8)
    return read_mask(MaskSource(((None, path),), path.name, "train", **options), rules, picture)


def saved(folder: Path, values: object, kind: type = np.uint8, suffix: str = "png") -> Path:
    Image.fromarray(np.asarray(values, kind)).save(folder / f"m.{suffix}")
    return folder / f"m.{suffix}"


def problem_of(path: Path, rules: LabelRules, picture: np.ndarray | None = None) -> tuple[str, str]:
    """(kind, message)"""
    with pytest.raises(LabelProblem) as caught:
        read(path, rules, picture)
    ((kind, detail),) = caught.value.observed.faults
    assert str(caught.value) == detail
    return kind, detail


@pytest.mark.parametrize(
    ("indices", "faults"),
    [
        ([[0, 1]], ()),
        ([[1, 1]], (("one_value", "m: all pixels are of one class"),)),
        ([[255, 255]], (("one_value", "m: all pixels are ignored"),)),
        ([[255, 0]], ()),
    ],
)
def test_a_mask_of_one_value(indices: list[list[int]], faults: tuple[tuple[str, str], ...]) -> None:
    observed = observe(np.array(indices, np.uint8), 2, SOURCE).observed
    assert (observed.name, observed.split, observed.faults) == ("m", "val", faults)


def test_a_mask_has_each_oddity_once_and_each_fault(tmp_path: Path) -> None:
    mask = observe(np.zeros((1, 2), np.uint8), 2, SOURCE, [("lossy", "a"), ("lossy", "b")])
    assert mask.oddities == ("lossy", "one_value")
    assert [detail for _, detail in mask.observed.faults] == ["a", "b", "m: all pixels are of one class"]
    assert mask.observed.pixels == (2, 0, 0)


def test_pixels_are_counted_by_class_and_the_ignored_last() -> None:
    assert count_pixels(np.array([[0, 2, 2], [255, 1, 255]], np.uint8), 3) == (1, 1, 2, 2)
    assert count_pixels(np.array([[0, 7]], np.uint8), 1) == (1, 0)  # 7 is no class, and not to be ignored either


def test_a_problem_survives_the_way_from_a_worker() -> None:
    observed = Observed("m", "train", (1, 2), {"7": 3}, (("swapped", "m"),))
    problem = pickle.loads(pickle.dumps(LabelProblem("m is bad", observed)))
    assert (str(problem), problem.observed, problem.cause) == ("m is bad", observed, Cause.DATA)


@pytest.mark.parametrize(("lowest", "highest", "is_refused"), [(0, 65535, False), (-1, 7, True), (0, 65536, True)])
def test_values_of_wide_masks(tmp_path: Path, lowest: int, highest: int, is_refused: bool) -> None:
    path = saved(tmp_path, [[lowest, highest]], np.int32, "tif")
    if is_refused:
        with pytest.raises(Failure) as caught:
            decode_mask(path, by_colour=False)
        assert str(caught.value) == f"{path} has values from {lowest} to {highest}: 0 to 65535 are possible"
    else:
        decoded = decode_mask(path, by_colour=False)
        assert (decoded.values.tolist(), decoded.values.dtype, decoded.is_colour) == ([[0, 65535]], np.uint16, False)
        assert decoded.format == "TIFF"


@pytest.mark.parametrize("odd", [0.5, float("nan"), float("inf")])
def test_values_of_masks_with_a_point_are_whole_numbers_in_the_same_range(tmp_path: Path, odd: float) -> None:
    """Pillow would cut them to bytes: 300 to 255, and 0.5 to 0."""
    path = saved(tmp_path, [[0, 7, 300]], np.float32, "tif")
    assert decode_mask(path, by_colour=False).values.tolist() == [[0, 7, 300]]
    with pytest.raises(Failure, match=rf"^{path} has values from -5 to 7: 0 to 65535 are possible$"):
        decode_mask(saved(tmp_path, [[7, -5]], np.float32, "tif"), by_colour=False)
    with pytest.raises(Failure, match=rf"^{path} has values that are no whole numbers$"):
        decode_mask(saved(tmp_path, [[0, odd]], np.float32, "tif"), by_colour=False)


def test_wide_values_are_none_of_a_table_of_colours(tmp_path: Path) -> None:
    rules = rules_of({"class": [{"name": "a", "colours": ["#000000"]}]})
    path = saved(tmp_path, [[0, 300]], np.uint16)
    assert problem_of(path, rules) == ("colours_or_values", f"{path} has values, and the class table colours")


def test_colours_are_none_of_a_table_of_values(tmp_path: Path) -> None:
    path = saved(tmp_path, [[[0, 0, 0], [0, 0, 1]]])
    assert problem_of(path, by_values(0, 1)) == (
        "colours_or_values", f"{path} has colours, and the class table values"
    )  # fmt: skip
    path = saved(tmp_path, [[[0, 0, 0], [0, 1, 0]]])
    assert problem_of(path, by_values(0, 1))[0] == "colours_or_values"


def test_sizes_are_told_as_width_and_height(tmp_path: Path) -> None:
    path = saved(tmp_path, np.zeros((2, 3)))
    assert problem_of(path, by_values(0, 1), np.zeros((4, 3, 3))) == (
        "size_differs", f"{path} is 3 x 2, its picture 3 x 4"
    )  # fmt: skip
    assert problem_of(path, by_values(0, 1), np.zeros((3, 2, 3))) == (
        "size_differs", f"{path} is 3 x 2, its picture 2 x 3: one of them is turned"
    )  # fmt: skip


def test_values_of_no_class_are_told_the_most_frequent_first(tmp_path: Path) -> None:
    values = [value for count, value in enumerate(range(20, 40), start=1) for _ in range(count)]
    path = saved(tmp_path, [[*values, 0, 1, 1, 9]])
    with pytest.raises(LabelProblem) as caught:
        read(path, by_values(0, 1, ignore=(9,)))
    assert str(caught.value) == f"{path}: 210 pixels of no class, 39, 38, 37, 36, 35"
    observed = caught.value.observed
    assert observed.unknown == {str(value): value - 19 for value in range(39, 23, -1)}  # 16 of them
    assert (observed.pixels, observed.split, observed.name) == ((1, 2, 1), "train", "m.png")


def test_colours_of_no_class_are_told_as_such(tmp_path: Path) -> None:
    rules = rules_of({"class": [{"name": "a", "colours": ["#000000"]}, {"name": "b", "colours": ["#ff0000"]}]})
    path = saved(tmp_path, [[[0, 0, 0], [1, 128, 2], [1, 128, 2]]])
    assert problem_of(path, rules) == ("unknown_value", f"{path}: 2 pixels of no class, #018002")


def test_what_was_taken_for_the_nearest_class_is_counted(tmp_path: Path) -> None:
    """Values to ignore are no class that could be the nearest."""
    path = saved(tmp_path, [[0, 10, 100, 101, 250]])
    mask = read(path, by_values(0, 100, 200, ignore=(250,)), takes_nearest=True)
    assert mask.indices.tolist() == [[0, 0, 1, 1, 255]]
    assert mask.observed.faults == (("lossy", f"{path}: the nearest class was taken for 2 pixels"),)
    path = saved(tmp_path, [[0, 224, 224]])
    assert read(path, by_values(0, 200, ignore=(255,)), takes_nearest=True).indices.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("classes", "values", "kind"),
    [
        ((0, 48), [24], "lossy"),
        ((0, 47), [24], "unknown_value"),  # so close to each other that nearness says nothing
        ((0, 200), [24], "lossy"),
        ((0, 200), [25], "unknown_value"),
        ((0, 200), [24, 24, 24, 24, 100], "lossy"),  # most
        ((0, 200), [24, 24, 24, 100], "unknown_value"),
        ((9,), [30], "lossy"),
    ],
)
def test_from_when_on_a_value_is_nearly_one_of_a_class(
    tmp_path: Path, classes: tuple[int, ...], values: list[int], kind: str
) -> None:
    assert problem_of(saved(tmp_path, [[classes[0], *values]]), by_values(*classes))[0] == kind


def test_the_values_to_ignore_have_to_lie_apart_too(tmp_path: Path) -> None:
    path = saved(tmp_path, [[0, 24]])
    assert problem_of(path, by_values(0, 200, ignore=(255,)))[0] == "lossy"
    assert problem_of(path, by_values(0, 200, ignore=(240,)))[0] == "unknown_value"


def stairs(edges: int, steps: int) -> np.ndarray:
    """A row with so many places where the values on both sides differ, `steps` of which have one in between."""
    row, level = [0, 0], 0
    for number in range(steps):
        row += [3, 6, 6, 6] if number % 2 == 0 else [3, 0, 0, 0]
    level = row[-1]
    while _count(row) < edges:
        level = 6 - level
        row += [level] * (2 if edges - _count(row) > 1 else 1)
    return np.array([row], np.int32)


def _count(row: list[int]) -> int:
    return sum(left != right for left, right in zip(row, row[2:], strict=False))


@pytest.mark.parametrize(
    ("edges", "steps", "is_interpolated"), [(64, 7, True), (63, 7, False), (70, 7, False), (69, 7, True)]
)
def test_from_when_on_rows_look_interpolated(edges: int, steps: int, is_interpolated: bool) -> None:
    """64 places where a row changes, and more than a tenth of them over a value in between."""
    values = stairs(edges, steps)
    assert _count(values[0].tolist()) == edges
    assert masks._is_interpolated(Decoded(values, False, "PNG")) is is_interpolated
    assert masks._is_interpolated(Decoded(6 - values, False, "PNG")) is is_interpolated
    colours = values * 0x010101
    assert masks._is_interpolated(Decoded(colours, True, "PNG")) is is_interpolated


@pytest.mark.parametrize(
    ("mask_values", "picture_colours", "is_swapped"),
    [(200, 64, True), (199, 64, False), (200, 65, False)],
)
def test_from_when_on_a_mask_is_taken_for_the_photo(mask_values: int, picture_colours: int, is_swapped: bool) -> None:
    """By every fourth pixel of every fourth row."""
    values = np.zeros((64, 64), np.uint32)
    values[::4, ::4] = (np.arange(256) % mask_values).reshape(16, 16)
    values[1::4] = np.arange(64) + 1000
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[::4, ::4, 2] = (np.arange(256) % picture_colours).reshape(16, 16)
    picture[1::4, :, 1] = np.arange(64)
    assert masks._is_swapped(values, picture) is is_swapped


def test_a_table_of_indices_covers_all_values() -> None:
    table = index_table(by_values(0, 300, ignore=(65535,)))
    assert (len(table), table[0], table[300], table[65535], table[7]) == (65536, 0, 1, 255, masks.UNKNOWN)
    table = index_table(rules_of({"ignore": ["#ffffff"], "class": [{"name": "a", "colours": ["#000100"]}]}))
    assert (len(table), table[0x100], table[0xFFFFFF], table[0]) == (1 << 24, 0, 255, masks.UNKNOWN)


def test_grey_saved_with_a_palette_and_transparency_is_its_values(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(tmp_path / "m.png", transparency=b"\x00\xff")
    assert decode_mask(tmp_path / "m.png", by_colour=False).values.tolist() == [[0, 1]]
    assert decode_mask(tmp_path / "m.png", by_colour=True).values.tolist() == [[0x090909, 0xC80000]]
    grey = decode_mask(saved(tmp_path, [[0, 7]]), by_colour=True)
    assert (grey.values.tolist(), grey.is_colour) == ([[0, 0x070707]], True)


def test_a_mask_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, np.arange(64 * 64).reshape(64, 64) % 256, suffix="jpg")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(Failure, match=rf"^{path}: cannot be decoded \(.*truncated.*\); fetch it again$"):
        decode_mask(path, by_colour=False)
