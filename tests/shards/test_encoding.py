"""What a shard's readers get back is what went in."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from shards.encoding import PNG_SIGNATURE, encode_png, png_damage


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
