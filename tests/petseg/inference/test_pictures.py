"""Any picture as RGB: by hand for each kind of source, and what is said of what is none."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from petseg.inference import pictures as module
from petseg.inference.pictures import MAX_FILE_BYTES, SUFFIXES, decode_picture, read_file, read_picture

GREY = np.array([[0, 100, 255], [1, 2, 3]], np.uint8)
RGB = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        RGB, torch.from_numpy(RGB), torch.from_numpy(RGB).permute(2, 0, 1), Image.fromarray(RGB),
        encoded(Image.fromarray(RGB)), RGB[::-1][::-1],
    ],
    ids=range(6),
)  # fmt: skip
def test_a_picture_is_the_same_from_every_source(source: Any) -> None:
    found = read_picture(source)
    assert np.array_equal(found, RGB)
    assert found.flags.c_contiguous
    assert found.flags.writeable


def test_a_grey_picture_has_its_level_in_each_channel() -> None:
    for source in (GREY, torch.from_numpy(GREY), Image.fromarray(GREY), encoded(Image.fromarray(GREY))):
        assert np.array_equal(read_picture(source), np.dstack([GREY] * 3))
    three_rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(read_picture(three_rows), np.dstack([three_rows] * 3))
    assert read_picture(np.zeros((3, 4, 3), np.uint8)).shape == (3, 4, 3)


def test_sixteen_bits_are_rounded_to_eight() -> None:
    """128 of 65535 are less than half a level, 129 more; signed levels below zero are black."""
    deep = Image.fromarray(np.array([[0, 128, 129, 257, 65535]], np.uint16))
    assert read_picture(deep)[0, :, 0].tolist() == [0, 0, 1, 1, 255]
    wide = Image.fromarray(np.array([[-5, 65535, 70000]], np.int32))
    assert read_picture(wide)[0, :, 2].tolist() == [0, 255, 255]


def test_transparent_pixels_lie_on_white() -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    expected = [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    assert read_picture(Image.fromarray(pixels))[0].tolist() == expected
    grey = Image.fromarray(pixels[..., [0, 3]])
    assert (grey.mode, read_picture(grey)[0, :2].tolist()) == ("LA", [[10, 10, 10], [255, 255, 255]])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 50, 60, 70])
    assert read_picture(encoded(palette, transparency=0))[0].tolist() == [[255, 255, 255], [50, 60, 70]]


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]), (2, [[3, 2, 1], [6, 5, 4]]), (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]), (5, [[1, 4], [2, 5], [3, 6]]), (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]), (8, [[3, 6], [2, 5], [1, 4]]), (9, [[1, 2, 3], [4, 5, 6]]),
    ],
)  # fmt: skip
def test_each_orientation_by_hand(orientation: int, shown: list[list[int]]) -> None:
    stored, exif = np.array([[1, 2, 3], [4, 5, 6]], np.uint8), Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(stored), exif=exif)
    assert decode_picture(content)[..., 0].tolist() == shown
    assert read_picture(content)[..., 1].tolist() == shown
    assert decode_picture(content, turned=False)[..., 2].tolist() == stored.tolist()


def test_jpegs_are_turned_and_decoded_as_the_others_are() -> None:
    stored, exif = np.full((8, 16, 3), 200, np.uint8), Image.Exif()
    stored[:, :8] = 20
    exif[0x0112] = 8  # the left of the file is at the bottom
    content = encoded(Image.fromarray(stored), "JPEG", exif=exif, quality=95)
    turned, plain = decode_picture(content), decode_picture(content, turned=False)
    assert (turned.shape, plain.shape) == ((16, 8, 3), (8, 16, 3))
    assert turned[12:].mean() < 40
    assert turned[:4].mean() > 180
    assert turned.flags.writeable


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"no picture", "not a readable picture"),
        (Image.new("F", (2, 2)), "its pixels are floating-point numbers: their range is not known"),
        (np.zeros((2, 2, 4), np.uint8), r"an array of shape \(2, 2, 4\) and type uint8 is no picture: .*"),
        (np.zeros((2, 2)), r"an array of shape \(2, 2\) and type float64 is no picture: .*"),
        (np.zeros((0, 2, 3), np.uint8), r"an array of shape \(0, 2, 3\) and type uint8 is no picture: .*"),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), r"an array of shape \(4, 2, 2\) and type uint8 is no picture: .*"),
        (3, "a int is no picture: give a path, a PIL image, an array or a tensor"),
        (np.zeros((5000, 5001, 3), np.uint8), "it has 5001 x 5000 pixels: 1 to 25 megapixels are possible"),
        (Image.new("1", (5001, 5000)), "it has 5001 x 5000 pixels: 1 to 25 megapixels are possible"),
    ],
    ids=range(9),
)
def test_what_is_no_picture_is_told_in_one_line(source: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        read_picture(source)


def test_the_largest_picture_of_all_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[Any] = [RGB, Image.fromarray(RGB), encoded(Image.fromarray(RGB))]
    monkeypatch.setattr(module, "MAX_PIXELS", 6)
    assert [read_picture(source).shape for source in sources] == [RGB.shape] * 3
    monkeypatch.setattr(module, "MAX_PIXELS", 5)
    for source in sources:
        with pytest.raises(ValueError, match="it has 3 x 2 pixels: 1 to 0 megapixels are possible"):
            read_picture(source)


def test_a_file_that_cannot_be_read_is_named_by_whoever_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("text").write_text("no picture")
    gone = "No such file or directory"
    for name, said in (("gone", gone), ("fifo", "not a regular file"), ("text", None)):
        if said:
            with pytest.raises(ValueError, match=f"^{said}$"):
                read_file(Path(name))
        with pytest.raises(ValueError, match=f"^{name}: {said or 'not a readable picture'}$"):
            read_picture(name)


def test_a_file_of_any_name_is_read_through_a_link_and_up_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(Image.fromarray(RGB))
    (tmp_path / "picture.dat").write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "picture.dat")
    for source in (tmp_path / "link", str(tmp_path / "link")):
        assert np.array_equal(read_picture(source), RGB)
    assert MAX_FILE_BYTES == 1 << 30
    monkeypatch.setattr(module, "MAX_FILE_BYTES", len(content))
    assert read_file(tmp_path / "link") == content
    monkeypatch.setattr(module, "MAX_FILE_BYTES", len(content) - 1)
    with pytest.raises(ValueError, match=f"^larger than {len(content) - 1:,} bytes$"):
        read_file(tmp_path / "link")


def test_suffixes_that_are_looked_for_are_of_kinds_that_are_read() -> None:
    Image.init()
    kinds = {Image.EXTENSION.get(suffix, suffix) for suffix in SUFFIXES if suffix != ".mpo"}
    assert kinds <= {*module.FORMATS}
    for kind in ("GIF", "WEBP", "TIFF", "BMP", "PPM"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert np.array_equal(decode_picture(encoded(Image.fromarray(RGB), kind, **options)), RGB)
