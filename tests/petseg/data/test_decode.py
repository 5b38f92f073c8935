"""Decoding: the same pixels as Pillow and shards.pack, and nothing that is not what it claims."""

import io
import itertools
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from petseg.data.decode import decode_image, decode_labels, decode_whole_image, decode_whole_labels, picture_size
from shards.encoding import encode_jpeg, encode_png

trimaps = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(1, 3))
)


def pillow_png(trimap: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(trimap).save(content, "PNG")
    return content.getvalue()


@given(trimaps)
def test_a_trimap_is_decoded_from_any_encoder(trimap: np.ndarray) -> None:
    for content in (encode_png(trimap), pillow_png(trimap)):
        out = np.zeros_like(trimap)
        decode_labels(memoryview(content), out)
        assert np.array_equal(out, trimap)


def test_a_squashed_trimap_keeps_its_values() -> None:
    trimap = np.array([[1, 2], [3, 2]], np.uint8).repeat(50, 0).repeat(30, 1)
    out = np.zeros((32, 32), np.uint8)
    decode_labels(encode_png(trimap), out)
    assert np.array_equal(out, np.array([[1, 2], [3, 2]], np.uint8).repeat(16, 0).repeat(16, 1))


def test_a_picture_is_decoded_or_squashed_as_in_packing() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    content = encode_jpeg(picture)
    same = np.zeros((48, 64, 3), np.uint8)
    decode_image(memoryview(content), same)
    with Image.open(io.BytesIO(content)) as theirs:
        assert np.array_equal(same, np.asarray(theirs))
    squashed = np.zeros((32, 32, 3), np.uint8)
    decode_image(content, squashed)
    wanted = np.asarray(Image.fromarray(same).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(squashed.astype(int) - wanted).max() <= 1


def test_one_thread_squashes_pictures_of_any_size() -> None:
    """A thread has memory of its own for them, which a larger picture after a smaller one must not overrun."""

    def squashed(side: int) -> np.ndarray:
        out = np.zeros((16, 16, 3), np.uint8)
        decode_image(encode_jpeg(np.full((side, 2 * side, 3), side, np.uint8)), out)
        return out

    with ThreadPoolExecutor(1) as pool:  # a new one, which has decoded nothing yet
        found = list(pool.map(squashed, (32, 96, 48)))
    assert [np.unique(out).tolist() for out in found] == [[32], [96], [48]]


def test_a_bomb_is_refused_by_its_header() -> None:
    jpg = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = jpg.index(b"\xff\xc0") + 5  # SOF0: length, precision, then height and width
    jpg[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(ValueError, match="its header says 60000 x 60000, more than 25 megapixels"):
        decode_image(bytes(jpg), np.zeros((32, 32, 3), np.uint8))
    png = bytearray(encode_png(np.ones((16, 16), np.uint8)))
    png[16:24] = struct.pack(">II", 9_000, 9_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(ValueError, match="its header says 9000 x 9000, more than 25 megapixels"):
        decode_labels(bytes(png), np.zeros((32, 32), np.uint8))


def test_a_png_that_unpacks_to_more_than_it_says_is_not_unpacked() -> None:
    """The quick way asks zlib for no more than the picture has; Pillow, asked next, stops at the last row too."""
    trimap = np.ones((16, 16), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in trimap) + bytes(10_000_000)
    data = zlib.compress(rows)
    body = b"IDAT" + data
    png = encode_png(trimap)
    altered = png[:33] + struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body)) + png[-12:]
    out = np.zeros_like(trimap)
    decode_labels(altered, out)
    assert np.array_equal(out, trimap)


@pytest.mark.parametrize("content", [b"", b"no picture", encode_jpeg(np.zeros((64, 64, 3), np.uint8))[:-300]])
def test_an_incomplete_jpeg_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_image(content, np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("content", [b"", b"no picture", pillow_png(np.ones((64, 64), np.uint8))[:60]])
def test_an_incomplete_png_is_an_error(content: bytes) -> None:
    with pytest.raises((ValueError, OSError, SyntaxError)):
        decode_labels(content, np.zeros((64, 64), np.uint8))


def test_a_trimap_in_colour_is_an_error() -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    with pytest.raises(ValueError, match="mode RGB, not 8-bit grey"):
        decode_labels(content.getvalue(), np.zeros((8, 8), np.uint8))


def test_an_error_shows_no_object_in_memory() -> None:
    for decode in (lambda out: decode_labels(b"none", out), lambda out: decode_image(b"none", out)):
        with pytest.raises(ValueError, match=r"^[^<]*$"):
            decode(np.empty((4, 4), np.uint8))


def test_a_picture_may_have_25_megapixels_and_no_more() -> None:
    jpg = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = jpg.index(b"\xff\xc0") + 5
    jpg[at : at + 4] = struct.pack(">HH", 5_000, 5_000)
    assert picture_size(bytes(jpg)) == (5_000, 5_000)
    jpg[at : at + 4] = struct.pack(">HH", 5_000, 5_001)
    with pytest.raises(ValueError, match="its header says 5001 x 5000"):
        picture_size(bytes(jpg))


def test_a_trimap_keeps_its_own_size_whoever_encoded_it() -> None:
    trimap = np.random.default_rng(0).integers(1, 4, (7, 19)).astype(np.uint8)
    for content in (encode_png(trimap), pillow_png(trimap)):
        assert np.array_equal(decode_whole_labels(content), trimap)


def test_damaged_pixels_with_a_right_checksum_are_an_error() -> None:
    png = encode_png(np.ones((16, 16), np.uint8))
    body = b"IDAT" + b"\xff" * 20
    altered = png[:33] + struct.pack(">I", 20) + body + struct.pack(">I", zlib.crc32(body)) + png[-12:]
    with pytest.raises((ValueError, OSError, SyntaxError)):
        decode_labels(altered, np.zeros((16, 16), np.uint8))


def grey_png(labels: np.ndarray, *, parts: int = 1, line_filter: int = 0) -> bytes:
    """A grey PNG whose pixels lie in so many chunks; line filter 1 is the difference from the pixel to the left."""
    rows = labels if line_filter == 0 else np.diff(labels, axis=1, prepend=0)
    data = zlib.compress(b"".join(bytes([line_filter]) + row.tobytes() for row in rows.astype(np.uint8)))
    plain = encode_png(labels)
    cuts = [len(data) * i // parts for i in range(parts + 1)]
    chunks = b""
    for first, end in itertools.pairwise(cuts):
        body = b"IDAT" + data[first:end]
        chunks += struct.pack(">I", end - first) + body + struct.pack(">I", zlib.crc32(body))
    return plain[:33] + chunks + plain[-12:]


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("line_filter", [0, 1])
def test_labels_may_lie_in_several_chunks_and_be_filtered(parts: int, line_filter: int) -> None:
    labels = np.random.default_rng(1).integers(0, 256, (9, 23)).astype(np.uint8)
    content, out = grey_png(labels, parts=parts, line_filter=line_filter), np.zeros((9, 23), np.uint8)
    decode_labels(content, out)
    assert np.array_equal(out, labels)
    assert np.array_equal(decode_whole_labels(content), labels)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "I;16", "RGBA"])
def test_labels_of_another_kind_of_png_are_an_error(mode: str) -> None:
    content = io.BytesIO()
    Image.new(mode, (8, 4)).save(content, "PNG")
    for decode in (decode_whole_labels, lambda png: decode_labels(png, np.zeros((4, 8), np.uint8))):
        with pytest.raises(ValueError, match=rf"^the mask has mode {mode}, not 8-bit grey$"):
            decode(content.getvalue())


def test_a_picture_that_says_to_be_huge_is_refused_before_there_is_memory_for_it() -> None:
    jpg = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = jpg.index(b"\xff\xc0") + 5
    jpg[at : at + 4] = struct.pack(">HH", 50_000, 60_000)
    with pytest.raises(ValueError, match=r"^its header says 60000 x 50000, more than 25 megapixels$"):
        decode_whole_image(bytes(jpg))
    png = bytearray(encode_png(np.ones((16, 16), np.uint8)))
    png[16:24] = struct.pack(">II", 5_001, 5_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(ValueError, match=r"^its header says 5001 x 5000, more than 25 megapixels$"):
        decode_whole_labels(bytes(png))


@pytest.mark.parametrize("size", [(10, 30), (40, 20)])
def test_rows_stay_rows_and_red_stays_red(size: tuple[int, int]) -> None:
    """A picture of 20 x 60 px: red above blue, and green at the right; its labels likewise."""
    picture, labels = np.zeros((20, 60, 3), np.uint8), np.ones((20, 60), np.uint8)
    picture[:10, :, 0] = picture[10:, :, 2] = 200
    picture[:, 30:] = [0, 200, 0]
    labels[10:], labels[:, 30:] = 2, 3
    jpg, png = encode_jpeg(picture), encode_png(labels)
    image, boxed = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    decode_image(jpg, image)
    decode_labels(png, boxed)
    for drawn, own in ((image, boxed), (decode_whole_image(jpg), decode_whole_labels(png))):
        high, wide = own.shape
        assert [int(own[y, x]) for y, x in ((1, 1), (high - 2, 1), (1, wide - 2))] == [1, 2, 3]
        assert [int(drawn[y, x].argmax()) for y, x in ((1, 1), (high - 2, 1), (1, wide - 2))] == [0, 2, 1]
        assert (own == 3).mean() == 0.5


def test_labels_as_they_are_packed_are_decoded_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(content: bytes) -> None:
        raise AssertionError("Pillow takes five times as long")

    labels = np.random.default_rng(2).integers(0, 256, (40, 57)).astype(np.uint8)
    monkeypatch.setattr("petseg.data.decode._open_labels", slow)
    out = np.zeros_like(labels)
    decode_labels(memoryview(encode_png(labels)), out)
    assert np.array_equal(out, labels)
    for other in (grey_png(labels, parts=2), grey_png(labels, line_filter=1), encode_png(labels[1:])):
        with pytest.raises(AssertionError, match="Pillow"):
            decode_labels(other, out)
