"""Letterbox: a picture scaled with its shape kept, in the middle of a picture of the network's size.

The margins have the mean colour of ImageNet's pictures, which is about zero once normalised, and the label that neither
loss nor metrics count (shards.classes.IGNORE_VALUE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from petseg.config.sizes import Size
from shards.classes import IGNORE_VALUE

if TYPE_CHECKING:
    import torch

PAD_RGB = np.array((124, 116, 104), np.uint8)  # 255 times the mean that petseg.data.inputs subtracts
PAD_LABEL = IGNORE_VALUE


@dataclass(frozen=True)
class Place:
    """Where a picture lies in a larger one."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        return self.height, self.width

    def rows_columns(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def place(native: Size, size: Size) -> Place:
    """Where a picture of the size `native` lies once letterboxed: as large as fits, centred."""
    (height, width), (high, wide) = native, size
    if high * width <= wide * height:  # the height decides
        scaled = high, min(wide, max(1, round(width * high / height)))
    else:
        scaled = min(high, max(1, round(height * wide / width))), wide
    return centred(scaled, size)


def centred(inner: Size, size: Size) -> Place:
    """Where a picture that is no larger than `size` lies in the middle of it."""
    (height, width), (high, wide) = inner, size
    return Place((high - height) // 2, (wide - width) // 2, height, width)


def without_margins(letterboxed: torch.Tensor, native: Size) -> torch.Tensor:
    """(..., H, W) of a letterboxed picture -> (..., h, w): what the picture, of the size `native`, fills of it."""
    rows, columns = place(native, (letterboxed.shape[-2], letterboxed.shape[-1])).rows_columns()
    return letterboxed[..., rows, columns]
