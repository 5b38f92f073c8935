"""Pictures as the report draws them, at one size."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.reporting.sections.drawing import SIZE_PX, _scaled, _scaled_mask, _size_of, draw_errors, draw_outlines
from petseg.metrics.overlay import MISSED_RGB, PREDICTION_RGB, TRUTH_RGB, WRONG_RGB


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


def test_outlines_and_errors_by_hand() -> None:
    image = np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
    truth, prediction = (np.zeros((SIZE_PX, SIZE_PX), bool) for _ in range(2))
    truth[40:120, 40:120], prediction[40:120, 80:160] = True, True
    lines = draw_outlines(image, truth, prediction)
    assert [tuple(lines[80, x]) for x in (40, 41, 42, 80, 159)] == [
        TRUTH_RGB, TRUTH_RGB, (255, 255, 255), PREDICTION_RGB, PREDICTION_RGB,
    ]  # fmt: skip
    errors = draw_errors(image, truth, prediction)
    grey = 215
    for x, colour, share in ((60, MISSED_RGB, 0.85), (100, PREDICTION_RGB, 0.25), (140, WRONG_RGB, 0.85)):
        assert tuple(errors[80, x]) == tuple(int((1 - share) * grey + share * c) for c in colour)
    assert tuple(errors[80, 180]) == (grey, grey, grey)
    assert tuple(errors[80, 40]) == TRUTH_RGB
