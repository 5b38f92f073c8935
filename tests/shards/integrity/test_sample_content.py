"""What is wrong with the members of a sample, word for word, at the limits of what a set can hold."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.integrity import content
from shards.integrity.content import check_content

VALUES = {"a": 1, "b": 2, "c": 255}
BOMB = (
    "k.png cannot be decoded (Image size (1200000000 pixels) exceeds limit of 178956970 pixels, could be decompression "
    "bomb DOS attack.)"
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mask_of(*values: int, size: tuple[int, int] = (32, 24)) -> bytes:
    pixels = np.resize(np.array(values, np.uint8), size[::-1])
    return encoded(Image.fromarray(pixels), "PNG")


JPG = encoded(Image.new("RGB", (32, 24)), "JPEG")


def problem_of(jpg: bytes = JPG, png: bytes | None = None, facts: bytes | None = b'{"key": "k"}') -> str:
    return check_content("k", jpg, mask_of(1) if png is None else png, facts, VALUES)


def test_a_whole_sample_has_no_problem() -> None:
    assert problem_of() == problem_of(facts=None) == problem_of(png=mask_of(1, 2, 255)) == ""
    assert problem_of(jpg=encoded(Image.new("L", (32, 24)), "JPEG")) == ""


@pytest.mark.parametrize(
    ("png", "problem"),
    [
        (mask_of(0, 1, 7), "k.png has other values than 1 (a), 2 (b), 255 (c): 0, 7"),
        (mask_of(*range(3, 13)), "k.png has other values than 1 (a), 2 (b), 255 (c): 3, 4, 5, 6, 7, 8, 9, 10"),
        (mask_of(1, size=(24, 32)), "k.png is 24 x 32, its picture 32 x 24"),
        (mask_of(1, size=(32, 25)), "k.png is 32 x 25, its picture 32 x 24"),
        (encoded(Image.new("RGB", (32, 24)), "PNG"), "k.png has the pixel format RGB; a mask is 8-bit grey"),
        (encoded(Image.new("1", (32, 24)), "PNG"), "k.png has the pixel format 1; a mask is 8-bit grey"),
        (JPG, "k.png cannot be decoded (it is no PNG)"),
        (b"", "k.png cannot be decoded (it is no PNG)"),
        (mask_of(1)[:-5], f"k.png is damaged (it is cut short after {len(mask_of(1)) - 5} bytes)"),
    ],
)
def test_a_mask_is_grey_whole_and_of_the_pictures_size(png: bytes, problem: str) -> None:
    assert problem_of(png=png) == problem


def test_only_so_many_values_are_declared_in_a_message() -> None:
    for number, end in ((8, "7 (n7)"), (9, "7 (n7), ...")):
        values = {f"n{value}": value for value in range(number)}
        said = check_content("k", JPG, mask_of(99), None, values)
        assert said.startswith("k.png has other values than 0 (n0), 1 (n1), ")
        assert said.endswith(f"{end}: 99")


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        (b'{"key": "other"}', "k.json is of 'other'"),
        (b'{"name": "k"}', "k.json cannot be read (KeyError('key'))"),
        (b"[]", "k.json cannot be read (TypeError('list indices must be integers or slices, not str'))"),
    ],
)
def test_facts_are_of_the_sample(facts: bytes, problem: str) -> None:
    assert problem_of(facts=facts) == problem
    assert problem_of(facts=b"").startswith("k.json cannot be read (JSONDecodeError(")


def test_a_picture_has_as_many_pixels_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_PIXELS", 32 * 24)
    assert problem_of() == ""
    monkeypatch.setattr(content, "MAX_PIXELS", 32 * 24 - 1)
    assert problem_of() == "k.jpg is 32 x 24, more than 0 megapixels"


def test_a_mask_that_claims_to_be_huge_is_not_decoded() -> None:
    png = bytearray(mask_of(1))
    for width, height in ((25_000_000, 1), (25_000_001, 1), (10_000, 10_000), (30_000, 40_000)):
        png[16:24] = struct.pack(">II", width, height)
        png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
        too_large = f"k.png is {width} x {height}, more than 25 megapixels"
        other_size = f"k.png is {width} x {height}, its picture 32 x 24"
        said = {25_000_000: other_size, 1_200_000_000: BOMB}.get(width * height, too_large)
        assert problem_of(png=bytes(png)) == said


def test_a_picture_is_a_jpeg_that_is_whole() -> None:
    with_a_warning = JPG[:-2] + b"abc" * 9 + JPG[-2:]
    for jpg in (b"", b"no", mask_of(1), JPG[:-200], with_a_warning):
        assert problem_of(jpg=jpg).startswith("k.jpg cannot be decoded (")
