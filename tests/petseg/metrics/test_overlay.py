"""What colours say, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.metrics.overlay import (
    CAPTION_PX,
    MISSED_RGB,
    PREDICTION_RGB,
    TRUTH_RGB,
    WRONG_RGB,
    draw_classes,
    draw_mask,
    draw_overlay,
    draw_sheet,
    outline,
    save_image,
)
from shards.classes import IGNORE_VALUE

GREY = np.full((9, 9, 3), 100, np.uint8)
Colour = tuple[int, int, int]
COLOURS: list[Colour] = [(0, 0, 0), (200, 0, 0), (0, 200, 0)]


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((9, 9), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def tint(colour: Colour, share: float = 0.45) -> Any:
    return pytest.approx([(1 - share) * 100 + share * level for level in colour], abs=1)  # cut to whole levels


def test_an_outline_is_the_rim_of_a_mask_and_not_the_pictures() -> None:
    mask = square(2, 2, 4)
    assert np.array_equal(outline(mask), mask & ~square(3, 3, 2))
    corner = square(0, 0, 3)  # its sides at the edge of the picture touch nothing outside
    rim = np.zeros((9, 9), bool)
    rim[2, :3] = rim[:3, 2] = True
    assert np.array_equal(outline(corner), rim)
    assert not outline(np.ones((9, 9), bool)).any()


def test_found_missed_and_wrong_pixels_have_colours_of_their_own() -> None:
    truth, prediction = square(0, 0, 5), square(2, 2, 5)
    drawn = draw_overlay(GREY, truth, prediction)
    assert drawn[3, 3].tolist() == tint(PREDICTION_RGB)
    assert drawn[1, 1].tolist() == tint(MISSED_RGB)
    assert drawn[6, 6].tolist() == tint(WRONG_RGB)
    assert drawn[4, 4].tolist() == list(TRUTH_RGB)  # the truth's outline
    assert drawn[8, 8].tolist() == [100, 100, 100]
    assert (GREY == 100).all()


def test_wrong_classes_are_hatched_and_what_does_not_count_is_left_alone() -> None:
    truth, prediction = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    truth[:, 3:6] = 1
    truth[:, 6:] = IGNORE_VALUE
    prediction[:, 3:] = 1
    prediction[:, 1] = 2  # wrong
    drawn = draw_classes(GREY, truth, prediction, COLOURS)
    assert (drawn[:, 6:] == 100).all()
    assert drawn[4, 4].tolist() == tint(COLOURS[1], 0.55)
    assert drawn[4, 0].tolist() == tint(COLOURS[0], 0.55)
    for row in range(9):
        wanted = list(WRONG_RGB) if (row + 1) % 6 < 2 else tint(COLOURS[2], 0.55)
        assert drawn[row, 1].tolist() == wanted
    for column in (2, 3, 5):  # on both sides of the border between classes, and beside what does not count
        assert (drawn[:, column] == 255).all()


def test_a_mask_is_tinted_but_for_its_plain_classes() -> None:
    mask = np.where(square(2, 2, 5), 1, 0).astype(np.uint8)
    mask[0, 0] = 2
    drawn = draw_mask(GREY, mask, COLOURS, plain=[0])
    assert (drawn[mask == 0] == 100).all()
    assert drawn[4, 4].tolist() == tint(COLOURS[1])
    assert drawn[2, 4].tolist() == list(COLOURS[1])  # the outline, in full colour
    assert drawn[0, 0].tolist() == list(COLOURS[2])
    assert (draw_mask(GREY, mask, COLOURS, plain=[0, 1, 2]) == 100).all()
    assert draw_mask(GREY, mask, COLOURS, plain=[])[8, 8].tolist() == tint(COLOURS[0])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sheet_has_its_pictures_in_rows_in_the_middle_of_their_cells(count: int) -> None:
    pictures = [(str(i), np.full((16, 8, 3), 50 * i, np.uint8)) for i in range(count)]
    drawn = draw_sheet(pictures, columns=2, size_px=32)
    rows = -(-count // 2)
    assert drawn.size == (64, rows * (CAPTION_PX + 32))
    for i in range(count):
        cell = np.asarray(drawn)[i // 2 * (CAPTION_PX + 32) + CAPTION_PX :, i % 2 * 32 :][:32, :32]
        assert (cell[:, 8:24] == 50 * i).all()
        assert (cell[:, :8] == 255).all()
        assert (cell[:, 24:] == 255).all()


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("JPG", "JPEG"), ("webp", "WEBP")])
def test_a_picture_is_written_as_its_suffix_says_into_a_folder_that_is_made(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    path = tmp_path / "a" / "b" / f"sheet.{suffix}"
    save_image(Image.new("RGB", (5, 3)), path)
    with Image.open(path) as found:
        assert (found.format, found.size) == (kind, (5, 3))
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_caption_stands_above_its_own_picture() -> None:
    white = np.full((16, 16, 3), 255, np.uint8)
    sheet = np.asarray(draw_sheet([("", white), ("seen", white), ("", white)], columns=2, size_px=32))
    dark = np.argwhere(sheet.min(axis=2) < 128)
    assert len(dark) > 10
    assert dark[:, 0].max() < CAPTION_PX
    assert 34 <= dark[:, 1].min() < dark[:, 1].max() < 64


def test_an_overlay_without_a_truth_has_no_outline() -> None:
    grey, nothing = np.full((4, 4, 3), 100, np.uint8), np.zeros((4, 4), bool)
    assert np.array_equal(draw_overlay(grey, nothing, nothing), grey)
    assert (draw_overlay(grey, nothing, ~nothing) == draw_overlay(grey, nothing, ~nothing)[0, 0]).all()
