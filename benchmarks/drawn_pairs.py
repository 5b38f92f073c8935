"""Drawn pictures with masks of many classes, in folders that patterns pair: to pack sets of any size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg

from shards import pool
from shards.encoding import encode_png

HEIGHT, WIDTH = 120, 160
SPLITS = ("train", "val")
VAL_SHARE = 10  # one pair in ten is for val
RECTANGLES = 6  # of other classes than the first, on each picture
CHUNK = 500


def draw_pairs(folder: Path, num_pairs: int, num_classes: int, workers: int) -> None:
    """Write `images/SPLIT/KEY.jpg` and `masks/SPLIT/KEY.png`, 160x120: rectangles in the colours of their classes."""
    for split in SPLITS:
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
    chunks = [range(start, min(start + CHUNK, num_pairs)) for start in range(0, num_pairs, CHUNK)]
    for _ in pool.ordered_map(partial(_draw_chunk, folder, num_classes), chunks, num_workers=workers):
        pass


def _draw_chunk(folder: Path, num_classes: int, indices: range) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (num_classes, 3), dtype=np.uint8)
    for index in indices:
        rng = np.random.default_rng(index)
        mask = _draw_mask(rng, num_classes)
        noise = rng.integers(0, 24, (HEIGHT, WIDTH, 1), dtype=np.uint8)
        picture = np.ascontiguousarray(colours[mask] // 2 + noise + 50)
        split = SPLITS[index % VAL_SHARE == 0]
        (folder / "images" / split / f"{index:06}.jpg").write_bytes(simplejpeg.encode_jpeg(picture, 90, "RGB"))
        (folder / "masks" / split / f"{index:06}.png").write_bytes(encode_png(mask))


def _draw_mask(rng: np.random.Generator, num_classes: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value in rng.integers(1, num_classes, RECTANGLES):
        top, left = rng.integers(0, HEIGHT - 20), rng.integers(0, WIDTH - 20)
        height, width = rng.integers(10, 60, 2)
        mask[top : top + height, left : left + width] = value
    return mask
