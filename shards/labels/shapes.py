"""Polygons and run-length codes of COCO as masks.

A pixel belongs to a polygon if its centre lies inside by the even-odd rule; pycocotools draws the outline as well, and
so differs by a pixel along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def fill_polygon(points: Sequence[float], height: int, width: int) -> np.ndarray:
    """(H, W) bool of a polygon x0, y0, x1, y1, ...; raises ValueError for fewer than three points."""
    flat = np.asarray(points, np.float64)
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2 or not np.isfinite(flat).all():
        raise ValueError(f"a polygon of {flat.size} numbers: at least three points, x and y of each, are needed")
    x, y = flat[::2], flat[1::2]
    flips = np.zeros((height, width + 1), bool)  # where a row passes an edge, everything to the right changes sides
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        first, end = max(0, int(np.ceil(y0 - 0.5))), min(height, int(np.ceil(y1 - 0.5)))
        if first >= end:
            continue
        rows = np.arange(first, end)
        crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
        flips[rows, columns] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :width]


def decode_rle(counts: Sequence[int] | str, height: int, width: int) -> np.ndarray:
    """(H, W) bool of runs of 0 and 1 in turn, column by column; raises ValueError if they do not fill the mask."""
    runs = _unpack(counts) if isinstance(counts, str) else list(counts)
    if any(type(run) is not int or run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"run-length codes of {sum(runs)} pixels, for a mask of {height} x {width}")
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(width, height).T


def _unpack(text: str) -> list[int]:
    """COCO's compressed codes: 5 bits a character, the sixth says that more follow; from the third on, differences."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(text) or not 48 <= ord(text[place]) < 112 or shift > 60:
                raise ValueError("run-length codes that break off, or hold other characters than COCO's")
            bits = ord(text[place]) - 48
            value |= (bits & 31) << shift
            more, place, shift = bool(bits & 32), place + 1, shift + 5
            if not more and bits & 16:
                value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def shape_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of an annotation's `segmentation`: polygons or run-length codes. Raises ValueError."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width] or not isinstance(segmentation.get("counts"), list | str):
            raise ValueError(f"run-length codes of size {segmentation.get('size')!r}, for a picture {height} x {width}")
        return decode_rle(segmentation["counts"], height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation is {type(segmentation).__name__}: polygons or run-length codes are expected")
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= fill_polygon(polygon, height, width)
    return mask
