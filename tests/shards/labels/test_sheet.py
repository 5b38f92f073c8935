"""The sheet on which a class table is checked by eye."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from shards.classes import ClassEntry, ClassTable
from shards.labels.sheet import INK, LINE_PX, MARGIN_PX, PAPER, TILE_PX, draw_sheet, palette_of

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
TABLE = ClassTable((ClassEntry("road", 0, RED), ClassEntry("car", 1, GREEN)))
STRIDE_X, STRIDE_Y = 2 * TILE_PX + 2 * MARGIN_PX, TILE_PX + MARGIN_PX


def sheet_of(*samples: tuple[np.ndarray, np.ndarray], table: ClassTable = TABLE) -> Image.Image:
    image = Image.open(io.BytesIO(draw_sheet(samples, table)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


def sample(height: int = 60, width: int = 60, colour: tuple[int, int, int] = BLUE) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    return np.full((height, width, 3), colour, np.uint8), mask


def colours_at(sheet: Image.Image, left: int, top: int) -> list[object]:
    """Of a tile: the middle of its picture, and both halves of its mask."""
    middle = top + TILE_PX // 2
    places = (TILE_PX // 2, TILE_PX + TILE_PX // 4, TILE_PX + 3 * TILE_PX // 4)
    return [sheet.getpixel((left + place, middle)) for place in places]


def test_each_value_has_its_classes_colour_and_the_ignored_are_white() -> None:
    palette = palette_of(ClassTable((ClassEntry("a", 0, RED), ClassEntry("b", 7, GREEN))))
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert [tuple(palette[value]) for value in (0, 7, 255, 1)] == [RED, GREEN, (255, 255, 255), (0, 0, 0)]


def test_pictures_lie_beside_their_masks_two_to_a_row() -> None:
    others = [sample(colour=(number, number, 200)) for number in range(3)]
    sheet = sheet_of(*others)
    assert sheet.size == (2 * STRIDE_X + MARGIN_PX, 2 * STRIDE_Y + LINE_PX + 3 * MARGIN_PX)
    for number in range(3):
        left, top = MARGIN_PX + number % 2 * STRIDE_X, MARGIN_PX + number // 2 * STRIDE_Y
        assert colours_at(sheet, left, top) == [(number, number, 200), RED, GREEN]
        right, bottom = left + 2 * TILE_PX, top + TILE_PX
        assert [sheet.getpixel((x, top)) for x in (left - 1, left, right - 1, right)] == [
            PAPER, (number, number, 200), GREEN, PAPER
        ]  # fmt: skip
        assert [sheet.getpixel((left, y)) == PAPER for y in (top - 1, bottom - 1, bottom)] == [True, False, True]
    assert colours_at(sheet, MARGIN_PX + STRIDE_X, MARGIN_PX + STRIDE_Y) == [PAPER] * 3


@pytest.mark.parametrize(("height", "width"), [(60, 30), (30, 60), (600, 300)])
def test_a_picture_keeps_its_shape_in_the_middle_of_its_tile(height: int, width: int) -> None:
    pixels = np.asarray(sheet_of(sample(height, width)))
    for number in range(2):
        left = MARGIN_PX + number * TILE_PX
        tile = pixels[MARGIN_PX : MARGIN_PX + TILE_PX, left : left + TILE_PX]
        drawn = (tile != PAPER).any(-1)
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        tall, wide = (TILE_PX, TILE_PX // 2) if height > width else (TILE_PX // 2, TILE_PX)
        assert (rows[0], rows[-1] + 1) == ((TILE_PX - tall) // 2, (TILE_PX + tall) // 2)
        assert (columns[0], columns[-1] + 1) == ((TILE_PX - wide) // 2, (TILE_PX + wide) // 2)
    mask = pixels[MARGIN_PX : MARGIN_PX + TILE_PX, MARGIN_PX + TILE_PX : MARGIN_PX + 2 * TILE_PX]
    colours = mask.reshape(-1, 3) @ [1 << 16, 1 << 8, 1]
    assert set(colours) == {0xFAFAF8, 0xC80000, 0x00C800}  # never mixed


def test_the_longest_strip_is_still_a_pixel_wide() -> None:
    pixels, mask = sample(1000, 1)
    column = np.asarray(sheet_of((pixels, mask)))[:, MARGIN_PX + (TILE_PX - 1) // 2]
    assert (column[MARGIN_PX + 5] == BLUE).all()


def test_the_legend_has_a_box_for_each_class_and_one_for_the_ignored_pixels() -> None:
    table = ClassTable(tuple(ClassEntry(f"c{number}", number, (10 * number, 99, 0)) for number in range(5)))
    sheet = sheet_of(sample(), table=table)
    assert sheet.height == STRIDE_Y + 2 * LINE_PX + 3 * MARGIN_PX
    top, column = STRIDE_Y + 2 * MARGIN_PX, sheet.width // 4
    colours = [*((10 * number, 99, 0) for number in range(5)), (255, 255, 255)]
    for number, colour in enumerate(colours):
        left, line = MARGIN_PX + number % 4 * column, top + number // 4 * LINE_PX
        assert sheet.getpixel((left + 6, line + 7)) == colour
        assert sheet.getpixel((left + 6, line + 1)) == PAPER
        assert sheet.getpixel((left, line + 2)) == sheet.getpixel((left + 12, line + 12)) == INK
        text = np.asarray(sheet)[line : line + LINE_PX, left + 18 : left + 60]
        assert (text != PAPER).any()
    assert sheet.getpixel((MARGIN_PX + 2 * column + 6, top + LINE_PX + 7)) == PAPER  # there is no seventh


def test_a_sheet_without_pictures_has_its_legend() -> None:
    three = ClassTable(tuple(ClassEntry(name, number, RED) for number, name in enumerate("abc")))
    for table in (TABLE, three):  # with the ignored pixels, four stand in one line
        assert sheet_of(table=table).size == (2 * STRIDE_X + MARGIN_PX, LINE_PX + 3 * MARGIN_PX)
