"""What a shard's readers get back is what went in."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from shards import encoding
from shards.command import Failure
from shards.encoding import (
    PNG_SIGNATURE,
    encode_jpeg,
    encode_png,
    load_pixels,
    open_image,
    png_damage,
    read_source_file,
)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_our_png_encoder_loses_nothing(trimap: np.ndarray) -> None:
    image = Image.open(io.BytesIO(encode_png(trimap)))
    assert image.mode == "L"
    assert (np.asarray(image) == trimap).all()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(pixel_data: bytes) -> bytes:
    """A PNG of 4 x 4 grey pixels with right checksums, whatever its pixel data are."""
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", pixel_data) + chunk(b"IEND", b"")


@given(arrays(np.uint8, (5, 7), elements=st.integers(1, 3)), st.data())
def test_no_altered_byte_of_a_png_goes_unseen(trimap: np.ndarray, data: st.DataObject) -> None:
    png = bytearray(encode_png(trimap))
    assert png_damage(bytes(png)) == ""
    png[data.draw(st.integers(0, len(png) - 1))] ^= data.draw(st.integers(1, 255))
    assert png_damage(bytes(png))


@given(arrays(np.uint8, (5, 7), elements=st.integers(1, 3)), st.integers(1, 60))
def test_no_png_that_is_cut_short_goes_unseen(trimap: np.ndarray, lost: int) -> None:
    assert "is cut short" in png_damage(encode_png(trimap)[:-lost])


@pytest.mark.parametrize(
    "options", [{}, {"bits": 1}, {"bits": 4}, {"optimize": True}, {"interlace": 1}], ids=lambda options: str(options)
)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_whole_pngs_of_all_kinds_are_whole(mode: str, options: dict[str, int]) -> None:
    image = Image.fromarray(np.arange(77, dtype=np.uint8).reshape(7, 11) % 2).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    assert png_damage(file.getvalue()) == ""


def test_pixels_that_were_never_written_are_named() -> None:
    """Pillow shows zeros in their place."""
    rows = bytes([0, 1, 1, 1, 1]) * 4
    assert png_damage(png_of(zlib.compress(rows))) == ""
    short = png_of(zlib.compress(rows[:10]))
    assert np.asarray(Image.open(io.BytesIO(short)))[2:].max() == 0
    assert png_damage(short) == "it has 10 of the 20 bytes of its pixels"
    assert "cannot be decompressed" in png_damage(png_of(b"noise"))
    assert png_damage(PNG_SIGNATURE + chunk(b"IEND", b"")) == "it has no header"
    assert png_damage(b"GIF89a") == "it does not begin as a PNG"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_jpeg_is_of_quality_95_with_halved_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    with Image.open(io.BytesIO(encode_jpeg(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (47, 33))
        with Image.open(io.BytesIO(encoded(image, "JPEG", quality=95))) as pillows:
            assert image.quantization == pillows.quantization
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
    flat = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    with Image.open(io.BytesIO(encode_jpeg(flat[:, ::-1]))) as image:
        assert np.abs(np.asarray(image).astype(int) - flat).max() <= 2


def failure(use, *arguments: object) -> str:
    with pytest.raises(Failure) as error:
        use(*arguments)
    return str(error.value)


def test_a_picture_that_cannot_be_opened_is_named_without_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    path, formats = Path("a/b.png"), ("JPEG", "PNG")
    image = Image.new("L", (30, 20))
    png, jpg = encoded(image, "PNG"), encoded(image, "JPEG")
    for data in (png, jpg):
        with open_image(path, data, formats) as opened:
            assert opened.size == (30, 20)
    for data in (b"", b"none", encoded(image, "GIF")):
        assert failure(open_image, path, data, formats) == "a/b.png: not a readable JPEG, PNG file"
    broken = failure(open_image, path, png[:-5], formats)
    assert broken == f"a/b.png is damaged (it is cut short after {len(png) - 5} bytes); fetch it again"
    monkeypatch.setattr(encoding, "MAX_PIXELS", 600)
    open_image(path, png, formats).close()
    monkeypatch.setattr(encoding, "MAX_PIXELS", 599)
    for data in (png, jpg):
        too_large = "a/b.png: 30 x 20 is more than 0 megapixels; make it smaller"
        assert failure(open_image, path, data, formats) == too_large


def test_a_picture_that_claims_to_be_huge_is_named() -> None:
    png = bytearray(encoded(Image.new("L", (30, 20)), "PNG"))
    png[16:24] = struct.pack(">II", 30_000, 40_000)
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    said = failure(open_image, Path("a.png"), bytes(png), ("PNG",))
    assert said.startswith("a.png: Image size (1200000000 pixels) exceeds limit")


def test_a_picture_that_cannot_be_decoded_is_named() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)
    image = open_image(Path("a.jpg"), encoded(Image.fromarray(noise), "JPEG")[:-5000], ("JPEG",))
    said = failure(load_pixels, Path("a.jpg"), image)
    assert said.startswith("a.jpg: cannot be decoded (")
    assert said.endswith("); fetch it again")


def test_a_sources_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert read_source_file(tmp_path / "a") == b"x"
    assert failure(read_source_file, tmp_path) == f"{tmp_path} is a folder, not a regular file"
    with pytest.raises(FileNotFoundError):
        read_source_file(tmp_path / "b")


def test_each_part_of_a_png_is_named_where_it_is_damaged() -> None:
    png = bytearray(encode_png(np.ones((5, 7), np.uint8)))
    ends = [8, 33, len(png) - 12]  # where IHDR, IDAT and IEND begin
    for place in ends:
        altered = bytearray(png)
        altered[place + 9 if place != ends[2] else place + 8] ^= 1  # of its data; of its checksum
        assert png_damage(bytes(altered)) == f"the chunk at byte {place} does not match its checksum"
    assert png_damage(bytes(png) + b"behind the end") == ""
    for size in (len(png) - 1, len(png) - 12, 33, 8, 9):
        assert png_damage(bytes(png[:size])) == f"it is cut short after {size} bytes"


@pytest.mark.parametrize(
    ("colour", "depth", "row"), [(0, 8, 4), (0, 1, 1), (2, 8, 12), (3, 2, 1), (4, 8, 8), (6, 16, 32)]
)
def test_a_png_has_as_many_bytes_as_its_pixels_take(colour: int, depth: int, row: int) -> None:
    header = struct.pack(">IIBBBBB", 4, 3, depth, colour, 0, 0, 0)
    wanted = 3 * (1 + row)
    for size, problem in (
        (wanted, ""), (wanted + 9, ""), (wanted - 1, f"it has {wanted - 1} of the {wanted} bytes of its pixels"),
    ):  # fmt: skip
        stream = zlib.compress(bytes(size))
        parts = chunk(b"IDAT", stream[:3]) + chunk(b"tEXt", b"x") + chunk(b"IDAT", stream[3:])
        assert png_damage(PNG_SIGNATURE + chunk(b"IHDR", header) + parts + chunk(b"IEND", b"")) == problem
