"""Small pictures with masks as data: URIs, in the colours of petseg.metrics.overlay."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from petseg.metrics import overlay
from petseg.metrics.overlay import MISSED_RGB, PREDICTION_RGB, TRUTH_RGB, WRONG_RGB, outline
from shards.classes import Colour

SIZE_PX = 192
QUALITY = 78  # 192 px then take 6-9 kB
# share of colour: the picture stays to be seen where the mask is right, and errors stand out from it
RIGHT, ERROR = 0.25, 0.85
GREY_LEVELS = (40, 215)  # of the grey picture below errors: neither black nor white, which are outlines

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Any8 = TypeVar("Any8", Pixels, Mask)


def draw_outlines(image: Pixels, truth: Mask, prediction: Mask | None = None) -> Pixels:
    """(H, W, 3) uint8, the longer side SIZE_PX: the true outline in white, and the predicted one over it."""
    drawn = _scaled(image)
    drawn[_line(_scaled_mask(truth))] = TRUTH_RGB
    if prediction is not None:
        drawn[_line(_scaled_mask(prediction))] = PREDICTION_RGB
    return drawn


def draw_errors(image: Pixels, truth: Mask, prediction: Mask) -> Pixels:
    """(H, W, 3) uint8, the longer side SIZE_PX: the picture in grey; right, missed and wrong in colours."""
    low, high = GREY_LEVELS
    grey = low + (high - low) / 255 * _scaled(image).mean(axis=2, keepdims=True).repeat(3, axis=2)
    truth, prediction = _scaled_mask(truth), _scaled_mask(prediction)
    for mask, colour, share in (
        (truth & prediction, PREDICTION_RGB, RIGHT),
        (truth & ~prediction, MISSED_RGB, ERROR),
        (~truth & prediction, WRONG_RGB, ERROR),
    ):
        grey[mask] = (1 - share) * grey[mask] + share * np.array(colour)
    grey[outline(truth)] = TRUTH_RGB
    return grey.astype(np.uint8)


def draw_classes(image: Pixels, truth: Pixels, prediction: Pixels, colours: Sequence[Colour]) -> Pixels:
    """(H, W, 3) uint8 at SIZE_PX: the picture in the colours of the predicted classes, hatched where they are wrong."""
    return overlay.draw_classes(_scaled(image), _scaled_mask(truth), _scaled_mask(prediction), colours)


def webp_uri(pixels: Pixels) -> str:
    """(H, W, 3) uint8 -> data: URI."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def _scaled(image: Pixels) -> Pixels:
    return np.array(Image.fromarray(image).resize(_size_of(image), Image.Resampling.LANCZOS))


def _scaled_mask(mask: Any8) -> Any8:
    return np.array(Image.fromarray(mask).resize(_size_of(mask), Image.Resampling.NEAREST))


def _size_of(pixels: np.ndarray) -> tuple[int, int]:
    """Width and height at which pixels (H, W, ...) are drawn: the longer side has SIZE_PX."""
    height, width = (max(1, round(side * SIZE_PX / max(pixels.shape[:2]))) for side in pixels.shape[:2])
    return width, height


def _line(mask: Mask) -> Mask:
    """Its outline, two pixels wide: one is lost where the page shows the picture smaller."""
    edge = outline(mask)
    return edge | outline(mask & ~edge)
