"""Polygons and run-length codes: golden values by hand, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.labels.shapes import decode_rle, fill_polygon, shape_of


def drawn(mask: np.ndarray) -> list[str]:
    return ["".join(".#"[int(value)] for value in row) for row in mask]


def test_a_rectangle() -> None:
    assert drawn(fill_polygon([1, 1, 4, 1, 4, 3, 1, 3], 4, 6)) == ["......", ".###..", ".###..", "......"]


def test_a_triangle() -> None:
    """Centres (x + 0.5, y + 0.5) with x + y < 4 lie inside."""
    assert drawn(fill_polygon([0, 0, 5, 0, 0, 5], 5, 5)) == ["####.", "###..", "##...", "#....", "....."]


def test_a_star_has_a_hole() -> None:
    """The even-odd rule: where the outline winds twice, the inside is outside."""
    outer_and_inner = [0, 0, 5, 0, 5, 5, 0, 5, 0, 0, 1, 1, 4, 1, 4, 4, 1, 4, 1, 1]
    assert drawn(fill_polygon(outer_and_inner, 5, 5)) == ["#####", "#...#", "#...#", "#...#", "#####"]


def test_what_reaches_out_of_the_picture_is_cut() -> None:
    assert drawn(fill_polygon([-9, -9, 2, -9, 2, 99, -9, 99], 2, 4)) == ["##..", "##.."]
    assert drawn(fill_polygon([9, 0, 12, 0, 12, 2], 2, 4)) == ["....", "...."]


@given(st.integers(1, 12), st.integers(1, 12), st.lists(st.floats(-3, 15), min_size=6, max_size=20))
def test_a_pixel_is_in_if_its_centre_is(height: int, width: int, points: list[float]) -> None:
    points = points[: len(points) // 2 * 2]
    mask = fill_polygon(points, height, width)
    corners = list(zip(points[::2], points[1::2], strict=True))
    for y in range(height):
        for x in range(width):
            crossings = 0
            for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
                if y0 > y1:
                    x0, y0, x1, y1 = x1, y1, x0, y0
                if y0 <= y + 0.5 < y1:
                    crossings += x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0) <= x + 0.5
            assert mask[y, x] == crossings % 2


def test_plain_codes_run_down_the_columns() -> None:
    assert drawn(decode_rle([1, 3, 2], 3, 2)) == [".#", "#.", "#."]
    assert drawn(decode_rle([0, 6], 3, 2)) == ["##"] * 3


def test_packed_codes() -> None:
    """As pycocotools packs them: mask.encode(asfortranarray([[0, 1, 1], [0, 1, 0]])) has the counts b"231"."""
    assert drawn(decode_rle("231", 2, 3)) == [".##", ".#."]


def packed(runs: list[int]) -> str:
    """COCO's rleToString."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
    return text


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12))
def test_packed_and_plain_codes_are_one_mask(runs: list[int]) -> None:
    runs[0] += sum(runs) % 2  # so that two columns share the pixels
    total = sum(runs)
    if total:
        assert np.array_equal(decode_rle(packed(runs), total // 2, 2), decode_rle(runs, total // 2, 2))


@pytest.mark.parametrize("counts", [[1, 2], [7], [-1, 7], "2", "23", "~", "2\n1", ["6"], [6.0]])
def test_codes_that_do_not_fill_the_mask(counts: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode_rle(counts, 3, 2)


@pytest.mark.parametrize(
    "segmentation",
    [None, "x", [[1, 2, 3]], [[0, 0, 1, 0, float("nan"), 1]], {"size": [2, 2], "counts": [4]}, {"size": [3, 2]}],
)
def test_what_is_no_segmentation(segmentation: object) -> None:
    with pytest.raises(ValueError, match=r"segmentation|polygon|run-length"):
        shape_of(segmentation, 3, 2)


@pytest.mark.parametrize(
    ("points", "count"),
    [([], 0), ([0, 0, 1, 1], 4), ([0] * 7, 7), ([[0, 0], [1, 0], [1, 1]] * 2, 12), ([0] * 5 + [np.inf], 6)],
)
def test_what_is_no_polygon_is_told_by_its_numbers(points: list[float], count: int) -> None:
    message = f"^a polygon of {count} numbers: at least three points, x and y of each, are needed$"
    with pytest.raises(ValueError, match=message):
        fill_polygon(points, 3, 2)
    assert not fill_polygon([0, 0, 1, 1, 2, 2], 3, 2).any()  # three points are enough


def test_codes_of_another_size_are_told_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"^run-length codes of 5 pixels, for a mask of 3 x 2$"):
        decode_rle([2, 3], 3, 2)
    for counts in ([-1, 7], [3, 3.0], [True, 5]):
        with pytest.raises(ValueError, match=r"^run-length codes of 6"):
            decode_rle(counts, 3, 2)
    with pytest.raises(ValueError, match=r"^run-length codes of size \[2, 3\], for a picture 3 x 2$"):
        shape_of({"size": [2, 3], "counts": [6]}, 3, 2)
    with pytest.raises(ValueError, match=r"^run-length codes of size \[3, 2\], for a picture 3 x 2$"):
        shape_of({"size": [3, 2], "counts": 6}, 3, 2)
    with pytest.raises(ValueError, match=r"^a segmentation is str: polygons or run-length codes are expected$"):
        shape_of("231", 3, 2)


def test_an_annotation_is_its_polygons_or_its_codes() -> None:
    """What several polygons cover, they all cover: no even-odd rule between them."""
    square = [0, 0, 2, 0, 2, 2, 0, 2]
    assert drawn(shape_of([square, [1, 0, 3, 0, 3, 1, 1, 1]], 2, 3)) == ["###", "##."]
    assert drawn(shape_of([], 2, 3)) == ["...", "..."]
    assert drawn(shape_of({"size": [2, 3], "counts": "231"}, 2, 3)) == [".##", ".#."]
    assert drawn(shape_of({"size": [2, 3], "counts": [2, 3, 1]}, 2, 3)) == [".##", ".#."]


@pytest.mark.parametrize("text", ["P", "o", "/1", "p1", "0" * 3 + "\u0661", "o" * 14 + "0"])
def test_packed_codes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^run-length codes that break off, or hold other characters than COCO's$"):
        decode_rle(text, 3, 2)
