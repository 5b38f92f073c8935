"""COCO's run lengths, as its own API reads and writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from petseg.inference.many.coco import annotate, compressed, run_lengths
from petseg.inference.many.outlines import polygons_of
from petseg.inference.predictor import Prediction
from tests.petseg.inference.test_export import header_of

api = pytest.importorskip("pycocotools.mask")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools, by numpy

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(mask=MASKS, noisy=st.booleans())
def test_the_text_is_that_of_pycocotools(mask: np.ndarray, noisy: bool) -> None:
    mask = mask if noisy else np.repeat(np.repeat(mask, 7, axis=0), 9, axis=1)
    theirs = api.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = {"size": list(mask.shape), "counts": compressed(run_lengths(mask))}
    assert ours["counts"] == theirs["counts"].decode()
    assert np.array_equal(api.decode(ours), mask)


@given(mask=MASKS)
def test_run_lengths_add_up_and_begin_with_zeros(mask: np.ndarray) -> None:
    lengths = run_lengths(mask)
    values = np.repeat(np.arange(len(lengths)) % 2, lengths)
    assert np.array_equal(values.reshape(mask.shape, order="F"), mask)


def decoded(polygons: list[list[int]], shape: tuple[int, ...]) -> np.ndarray:
    """The mask that COCO's API makes of polygons."""
    return api.decode(api.merge(api.frPyObjects(polygons, *shape))).astype(bool)


@settings(max_examples=300)
@given(mask=MASKS.filter(lambda mask: mask.any()), noisy=st.booleans())
def test_polygons_are_the_mask_again(mask: np.ndarray, noisy: bool) -> None:
    """With holes, parts within holes, pixels that touch at a corner, and parts at the edge of the picture."""
    mask = mask if noisy else np.repeat(np.repeat(mask, 3, axis=0), 4, axis=1)
    polygons = polygons_of(mask)
    assert np.array_equal(decoded(polygons, mask.shape), mask)
    assert len(polygons) == ndimage.label(mask)[1]
    assert all(len(one) >= 8 for one in polygons)


def test_each_polygon_is_one_part_alone() -> None:
    """Whatever else lies in the rectangle around it: here a pixel in the hole of a ring."""
    mask = np.pad(np.pad(np.pad(np.ones((1, 1), bool), 1), 1, constant_values=True), 1)
    labels, count = ndimage.label(mask)
    for number, polygon in zip(range(1, count + 1), polygons_of(mask), strict=True):
        assert np.array_equal(decoded([polygon], mask.shape), labels == number)


@pytest.mark.parametrize(
    ("rows", "polygons"),
    [
        (["#"], [[0, 0, 1, 0, 1, 1, 0, 1]]),
        (["##.", "..#"], [[0, 0, 2, 0, 2, 1, 0, 1], [2, 1, 3, 1, 3, 2, 2, 2]]),
        (["###", "#.#", "###"], [[0, 0, 3, 0, 3, 3, 0, 3, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 0, 1]]),
        (
            ["##.", "#.#", "###"],
            [[0, 0, 2, 0, 2, 1, 1, 1, 1, 2, 2, 2, 2, 1, 3, 1, 3, 3, 0, 3]],
        ),
    ],
    ids=["pixel", "touching at a corner", "hole", "hole open at a corner"],
)
def test_polygons_by_hand(rows: list[str], polygons: list[list[int]]) -> None:
    mask = np.array([[one == "#" for one in row] for row in rows])
    assert polygons_of(mask) == polygons


def test_an_annotation_by_hand() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 2
    logits = torch.zeros(3, 4, 6)
    prediction = Prediction(np.zeros((4, 6, 3), np.uint8), mask, header_of(image_size_px="4x6"), logits)
    (one,) = annotate(prediction, "run_lengths")
    assert (one["category_id"], one["area"], one["bbox"]) == (2, 6, [2, 1, 3, 2])
    assert one["score"] == pytest.approx(1 / 3)
    assert one["segmentation"] == {"size": [4, 6], "counts": compressed([9, 2, 2, 2, 2, 2, 5])}
    (other,) = annotate(prediction, "polygons")
    assert other == one | {"segmentation": [[2, 1, 5, 1, 5, 3, 2, 3]]}
