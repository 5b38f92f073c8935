"""Pictures as the report draws them, at one size."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.reporting.sections.drawing import SIZE_PX, _scaled, _scaled_mask, _size_of


@pytest.mark.parametrize(
    ("shape", "size"),
    [((10, 10), (SIZE_PX, SIZE_PX)), ((5, 10), (SIZE_PX, SIZE_PX // 2)), ((1000, 1, 3), (1, SIZE_PX))],
)
def test_the_longer_side_decides(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    assert _size_of(np.zeros(shape, np.uint8)) == size


def test_a_scaled_mask_has_the_classes_that_it_had_and_no_others() -> None:
    mask = np.array([[0, 200], [7, 255]], np.uint8)
    half = SIZE_PX // 2
    assert np.array_equal(_scaled_mask(mask), mask.repeat(half, axis=0).repeat(half, axis=1))
    assert _scaled_mask(mask == 7).dtype == bool


def test_a_scaled_picture_is_smooth() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[:, 1] = 255
    assert len(np.unique(_scaled(picture))) > 20
