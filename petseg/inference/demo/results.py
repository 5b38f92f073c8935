"""The predictions that the page shows, kept in memory while there is room, and drawn when it asks."""

from __future__ import annotations

import io
import itertools
import threading
from dataclasses import replace

import numpy as np
from PIL import Image

from petseg.inference.predictor import Prediction

MAX_BYTES = 512 << 20
ALWAYS_KEPT = 2  # however large they are: two models side by side

VIEWS = ("picture", "overlay", "mask", "probability", "cutout")


class Results:
    """The latest predictions, up to a number of bytes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[str, Prediction] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def add(self, prediction: Prediction) -> str:
        """Keep a prediction, and forget the oldest ones that there is no room for; returns its key."""
        with self._lock:
            key = str(next(self._numbers))
            self._kept[key] = prediction
            num_bytes = sum(map(_num_bytes, self._kept.values()))
            while num_bytes > self._max_bytes and len(self._kept) > ALWAYS_KEPT:
                num_bytes -= _num_bytes(self._kept.pop(next(iter(self._kept))))
            return key

    def get(self, key: str) -> Prediction | None:
        with self._lock:
            return self._kept.get(key)


def draw(prediction: Prediction, view: str, name: str = "") -> bytes:
    """A view of a prediction as a PNG file.

    view: one of VIEWS
    name: the class whose probability is drawn, and that is cut out; without one, all that is not background is cut out
    Raises ValueError for an unknown view or class.
    """
    if view not in VIEWS:
        raise ValueError(f"there is no view {view!r:.20}: choose one of {', '.join(VIEWS)}")
    if view == "picture":
        return _png(Image.fromarray(prediction.image))
    if view == "overlay":
        return _png(prediction.overlay())
    if view == "mask":
        return _png(prediction.as_image())
    if view == "cutout":
        return _png(prediction.cutout(name))
    if name not in prediction.header.names:
        raise ValueError(f"there is no class {name!r:.80}: choose one of {', '.join(prediction.header.names)}")
    # of a copy: a prediction keeps its probabilities once they are asked for, and they are larger than all else
    probabilities = replace(prediction).probabilities[prediction.header.names.index(name)]
    return _png(Image.fromarray((probabilities * 255).round().astype(np.uint8)))


def share_that_differs(one: Prediction, other: Prediction) -> float:
    """Share of the pixels to which two models give different classes; raises ValueError if that says nothing."""
    if one.header.names != other.header.names:
        raise ValueError("not comparable: the models have different classes")
    if one.mask.shape != other.mask.shape:
        raise ValueError("not comparable: the pictures have different sizes")
    return float((one.mask != other.mask).mean())


def _num_bytes(prediction: Prediction) -> int:
    return prediction.image.nbytes + prediction.mask.nbytes + prediction.logits.nbytes


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # it travels over loopback: time counts more than size
    return file.getvalue()
