"""Reads and draws a trimap of Oxford-IIIT Pet: 1 pet, 2 background, 3 border."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from shards.command import Failure
from shards.encoding import load_pixels, open_image, read_source_file
from shards.sources.listing import Mask

TRIMAP_VALUES = (1, 3)  # lowest and highest
BACKGROUND = 2
TINT = np.array([235, 45, 60], np.float32)
CONTOUR = np.array([255, 225, 40], np.float32)


def read_trimap(path: Path, size: tuple[int, int], picture: Path) -> Mask:
    """The trimap of a picture of this size (width, height).

    Raises Failure that names the file for another size than the picture's or values not 1, 2, 3.
    """
    data = read_source_file(path)
    image = open_image(path, data, ("PNG",))
    if image.size != size:
        theirs, ours = (f"{width} x {height}" for width, height in (image.size, size))
        raise Failure(f"{path} is {theirs}, but its picture {picture} is {ours}")
    if image.mode not in ("L", "P"):
        raise Failure(f"{path}: pixel format {image.mode}; a trimap is 8-bit grey with the values 1, 2, 3")
    load_pixels(path, image)
    is_palette = image.mode == "P"
    trimap = Image.fromarray(np.asarray(image)) if is_palette else image  # palette indices are the values
    pixels = np.asarray(trimap)
    lowest, highest = int(pixels.min()), int(pixels.max())
    if not TRIMAP_VALUES[0] <= lowest <= highest <= TRIMAP_VALUES[1]:
        values = ", ".join(str(value) for value in np.unique(pixels)[:8])
        raise Failure(f"{path} has the values {values}; a trimap has 1 (pet), 2 (background), 3 (border)")
    oddities = ("palette_trimap",) if is_palette else ()
    if lowest == highest == BACKGROUND:
        oddities = (*oddities, "all_background")
    return Mask(trimap, None if is_palette else data, oddities)


def tinted(pixels: np.ndarray, trimap: np.ndarray, meaning: Mapping[str, int]) -> np.ndarray:
    """(H, W, 3) float pixels with the pet of a trimap (H, W) in red and its border in yellow."""
    values = trimap[..., None]
    pixels = np.where(values == meaning["pet"], pixels * 0.62 + TINT * 0.38, pixels)
    return np.where(values == meaning["border"], pixels * 0.3 + CONTOUR * 0.7, pixels)
