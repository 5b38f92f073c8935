"""Results are kept while there is room for them."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from petseg.inference.demo.results import ALWAYS_KEPT, VIEWS, Results, draw, share_that_differs
from petseg.inference.predictor import Prediction
from tests.petseg.inference.test_export import header_of


def prediction(side: int, value: int = 0) -> Prediction:
    image, mask = np.zeros((side, side, 3), np.uint8), np.full((side, side), value, np.uint8)
    return Prediction(image, mask, header_of(), torch.zeros(3, 4, 4))


def size_of(one: Prediction) -> int:
    return 4 * one.mask.size + 3 * 4 * 4 * 4


@given(sides=st.lists(st.integers(1, 20), max_size=30), room=st.integers(0, 8000))
def test_the_latest_that_fit_are_kept(sides: list[int], room: int) -> None:
    results, added = Results(room), [prediction(side) for side in sides]
    keys = [results.add(one) for one in added]
    kept = [one for one in map(results.get, keys) if one is not None]
    assert kept == added[len(added) - len(kept) :]  # the latest, each as it was
    assert len(set(keys)) == len(keys)
    assert len(kept) >= min(ALWAYS_KEPT, len(added))
    assert sum(map(size_of, kept)) <= room or len(kept) <= ALWAYS_KEPT
    if len(kept) < len(added):  # the next older one had no room
        assert sum(map(size_of, added[-len(kept) - 1 :])) > room


def test_a_view_leaves_no_probabilities_behind() -> None:
    """They are larger than all else that is kept, and would not be counted."""
    one = prediction(8)
    draw(one, "probability", "cat")
    assert "probabilities" not in vars(one)


def test_the_share_that_differs() -> None:
    one, other = prediction(8), prediction(8)
    other.mask[:2] = 1
    assert share_that_differs(one, other) == 0.25
    with pytest.raises(ValueError, match="different sizes"):
        share_that_differs(one, prediction(9))


def shown(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_each_view_is_what_it_is_called() -> None:
    one = prediction(8)
    one.image[..., 0] = 50
    one.mask[:4] = 1
    one.logits[2, :2] = 9.0
    assert np.array_equal(np.asarray(shown(draw(one, "picture"))), one.image)
    assert np.array_equal(np.asarray(shown(draw(one, "mask"))), one.mask)
    overlay = np.asarray(shown(draw(one, "overlay")))
    assert np.array_equal(overlay[4:], one.image[4:])  # the background
    assert not np.array_equal(overlay[:4], one.image[:4])
    names = one.header.names
    assert np.array_equal(np.asarray(shown(draw(one, "cutout")))[..., 3] == 255, one.mask == 1)
    assert np.array_equal(np.asarray(shown(draw(one, "cutout", names[0])))[..., 3] == 255, one.mask == 0)
    for number, name in enumerate(names):
        expected = (replace(one).probabilities[number] * 255).round()
        assert np.array_equal(np.asarray(shown(draw(one, "probability", name))), expected)
    with pytest.raises(ValueError, match=f"there is no class 'horse': choose one of {', '.join(names)}"):
        draw(one, "probability", "horse")
    with pytest.raises(ValueError, match=f"there is no view 'x': choose one of {', '.join(VIEWS)}"):
        draw(one, "x")
