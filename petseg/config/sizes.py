"""Sizes of pictures as they are typed: 256, a square, or 512x1024, height x width."""

from __future__ import annotations

import re
from typing import Literal

Size = tuple[int, int]  # height and width in pixels
Fit = Literal["squash", "letterbox", "crop"]  # how pictures of any shape get the network's size
ImageSize = int | str  # as a config has it: the side of a square, or HxW

SIZE_MULTIPLE_PX = 32
MAX_DIGITS = 6  # of a side; int() refuses thousands of digits with a message of its own
_TYPED = re.compile(rf"\s*(\d{{1,{MAX_DIGITS}}})(?:\s*[xX]\s*(\d{{1,{MAX_DIGITS}}}))?\s*", re.ASCII)


def plain_size(value: ImageSize) -> ImageSize:
    """The one way to write a size: an int for a square, else HxW. What is no size stays as it is."""
    if isinstance(value, int):
        return value
    if (typed := _TYPED.fullmatch(value)) is None:
        return value
    height, width = int(typed[1]), int(typed[2] or typed[1])
    return height if height == width else text_of((height, width))


def size_of(value: ImageSize | Size) -> Size:
    """Height and width; raises ValueError for text that is no size."""
    if isinstance(value, tuple):
        return value
    plain = plain_size(value)
    if isinstance(plain, int):
        return plain, plain
    height, separator, width = plain.partition("x")
    if not (separator and height.isascii() and height.isdecimal() and width.isascii() and width.isdecimal()):
        raise ValueError(f"{value!r} is no size of a picture: write 256 for a square, or 512x1024 (height x width)")
    return int(height), int(width)


def text_of(size: Size) -> str:
    """The size as it is typed: 256 or 512x1024."""
    height, width = size
    return f"{height}" if height == width else f"{height}x{width}"


def is_network_size(value: ImageSize) -> bool:
    """Whether both sides are multiples of SIZE_MULTIPLE_PX."""
    try:
        return all(side > 0 and side % SIZE_MULTIPLE_PX == 0 for side in size_of(value))
    except ValueError:
        return False
