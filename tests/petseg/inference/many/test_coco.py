"""COCO's run lengths, as its own API reads and writes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from petseg.inference.many.coco import annotate, compressed, run_lengths

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


def test_an_annotation_by_hand() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 2
    probabilities = np.full((3, 4, 6), 0.25, np.float32)
    (one,) = annotate(mask, (1, 2), probabilities)
    assert (one["category_id"], one["area"], one["bbox"], one["score"]) == (2, 6, [2, 1, 3, 2], 0.25)
    assert one["segmentation"] == {"size": [4, 6], "counts": compressed([9, 2, 2, 2, 2, 2, 5])}
    assert annotate(mask, (1,), probabilities) == []
