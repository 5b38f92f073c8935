"""COCO's annotations of masks: run lengths down the columns, in the compressed text that its API writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petseg.inference.many.outlines import polygons_of
from petseg.inference.many.wanted import Segmentation
from petseg.inference.predictor import Prediction

BITS, MORE, SIGN = 5, 0x20, 0x10  # of a character: value bits, whether another follows, the sign in the last one
FIRST_CHARACTER = 48


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """(H, W) -> lengths of the runs of 0 and 1 in turn, down the columns, the first of 0."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    lengths: list[int] = np.diff(bounds).tolist()
    return [0, *lengths] if flat[0] else lengths


def compressed(counts: Sequence[int]) -> str:
    """Run lengths as COCO's text: each from the third on as the difference to the one two before it."""
    text = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            bits = value & (MORE - 1)
            value >>= BITS
            more = value != (-1 if bits & SIGN else 0)
            text.append(chr((bits | (MORE if more else 0)) + FIRST_CHARACTER))
    return "".join(text)


def annotate(prediction: Prediction, segmentation: Segmentation) -> list[dict[str, Any]]:
    """An annotation of each counted class that the mask has, without image and id; score = mean probability in it.

    segmentation: run_lengths, or polygons, a list of them for the connected parts of the class
    """
    found, mask = [], prediction.mask
    for one in prediction.header.counted:
        own = mask == one
        if not own.any():
            continue
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])
        lengths = {"size": list(mask.shape), "counts": compressed(run_lengths(own))}
        found.append(
            {
                "category_id": one,
                "segmentation": polygons_of(own) if segmentation == "polygons" else lengths,
                "area": int(own.sum()),
                "bbox": [left, top, right - left + 1, bottom - top + 1],
                "iscrowd": 0,
                "score": float(prediction.probabilities[one][own].mean(dtype=np.float64)),
            }
        )
    return found
