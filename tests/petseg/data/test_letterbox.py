"""Letterboxed pictures: where they lie, what fills the rest, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petseg.data.decode import decode_image, decode_labels
from petseg.data.inputs import IGNORE_INDEX, normalise, to_classes
from petseg.data.letterbox import PAD_LABEL, PAD_RGB, Place, place, without_margins
from petseg.metrics.pixels import to_native
from petseg.targets.pets import rules_of
from shards.encoding import encode_jpeg, encode_png

SIDES = st.integers(1, 700)
SIZES = st.tuples(SIDES, SIDES)


@given(SIZES, st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_picture_lies_inside_touches_two_sides_and_keeps_its_shape(
    native: tuple[int, int], blocks: tuple[int, int]
) -> None:
    high, wide = size = 32 * blocks[0], 32 * blocks[1]
    at = place(native, size)
    assert at.top >= 0
    assert at.left >= 0
    assert at.top + at.height <= high
    assert at.left + at.width <= wide
    assert at.height == high or at.width == wide
    assert abs((high - at.height) - 2 * at.top) <= 1  # in the middle
    assert abs((wide - at.width) - 2 * at.left) <= 1
    scale = max(at.height / native[0], at.width / native[1]) if 1 in at.size else at.height / native[0]
    assert abs(at.width - native[1] * scale) <= max(0.5 * max(1, native[1] / native[0]), 1) + 1e-9 or 1 in at.size


@given(SIZES)
def test_a_picture_of_the_same_shape_fills_all(size: tuple[int, int]) -> None:
    at = place(size, (size[0] * 2, size[1] * 2))
    assert (at.top, at.left, at.size) == (0, 0, (size[0] * 2, size[1] * 2))


@pytest.mark.parametrize("native", [(40, 80), (80, 40), (96, 96), (200, 64), (17, 90)])
def test_the_way_to_the_network_and_back(native: tuple[int, int]) -> None:
    """A smooth picture comes back from a letterbox as it was; margins have the mean colour and do not count."""
    height, width = native
    size = (64, 96)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * y / height, 255 * x / width, np.full(native, 128)], axis=2).astype(np.uint8)
    labels = np.where(x < width / 2, 1, 2).astype(np.uint8)
    image, boxed = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
    decode_image(encode_jpeg(smooth), image, letterbox=True)
    decode_labels(encode_png(labels), boxed, letterbox=True)
    at = place(native, size)
    inside = np.zeros(size, bool)
    inside[at.rows_columns()] = True
    assert (image[~inside] == PAD_RGB).all()
    assert (boxed[~inside] == PAD_LABEL).all()
    assert set(np.unique(boxed[inside])) == {1, 2}
    left = boxed[at.rows_columns()] == 1
    assert abs(left.mean() - 0.5) < 0.02
    back = to_native(torch.from_numpy(image).permute(2, 0, 1), native, "letterbox")
    assert back.shape == (1, 3, *native)
    rows, columns = slice(2, -2), slice(2, -2)  # at the edges of the picture a bilinear filter has less to go on
    difference = back[0].permute(1, 2, 0).numpy()[rows, columns] - smooth[rows, columns]
    assert np.abs(difference).max() < 12


def test_without_margins_is_a_view_of_the_picture() -> None:
    boxed = torch.arange(64 * 96).view(1, 64, 96)
    inner = without_margins(boxed, (100, 50))
    assert inner.shape == (1, 64, 32)
    assert torch.equal(inner, boxed[:, :, 32:64])


def test_margins_are_about_zero_for_the_network() -> None:
    pad = torch.tensor(PAD_RGB.astype(np.float32)).view(1, 3, 1, 1)
    assert normalise(pad, channels_last=False).abs().max() < 0.02


@pytest.mark.parametrize("border", ["fg", "bg", "ignore"])
def test_margins_of_a_trimap_are_ignored_by_every_border_rule(border: str) -> None:
    labels = torch.tensor([[[1, 2, 3, PAD_LABEL]]], dtype=torch.uint8)
    _, rules = rules_of("pet", {"pet": 1, "background": 2, "border": 3}, ())
    target = to_classes(labels, torch.from_numpy(rules[f"border_{border}"]))
    assert target.tolist() == [[[1, 0, {"fg": 1, "bg": 0, "ignore": IGNORE_INDEX}[border], IGNORE_INDEX]]]


def test_a_picture_of_the_size_is_as_without_a_letterbox(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    jpg = encode_jpeg(random.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    boxed, squashed = np.empty((64, 96, 3), np.uint8), np.empty((64, 96, 3), np.uint8)
    decode_image(jpg, boxed, letterbox=True)
    decode_image(jpg, squashed)
    assert np.array_equal(boxed, squashed)


@pytest.mark.parametrize(
    ("native", "at"),
    [
        ((100, 100), Place(0, 16, 64, 64)),
        ((100, 300), Place(16, 0, 32, 96)),
        ((64, 96), Place(0, 0, 64, 96)),
        ((100, 149), Place(0, 0, 64, 95)),  # one column is left, at the right
        ((75, 200), Place(14, 0, 36, 96)),
        ((1000, 1), Place(0, 47, 64, 1)),
        ((1, 1000), Place(31, 0, 1, 96)),
    ],
)
def test_places_by_hand(native: tuple[int, int], at: Place) -> None:
    assert place(native, (64, 96)) == at
    rows, columns = at.rows_columns()
    assert (rows, columns) == (slice(at.top, at.top + at.height), slice(at.left, at.left + at.width))
    assert at.size == (at.height, at.width)
