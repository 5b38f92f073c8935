"""Picture files: what a source's file holds, the bytes that stand for it in a shard, and whether a PNG is whole."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.command import Failure
from shards.files import NotRegular, read_regular

MAX_PIXELS = 25_000_000  # asked of the header before anything is decoded: a small file can claim to be huge
JPEG_QUALITY = 95
PNG_SIGNATURE, PNG_LEVEL = b"\x89PNG\r\n\x1a\n", 2
HEADER_BYTES = 13
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types


def read_source_file(path: Path) -> bytes:
    """The bytes of a source's file; raises Failure if it is a folder, a FIFO or a device."""
    try:
        return read_regular(path)
    except NotRegular as error:
        raise Failure(str(error)) from None


def open_image(path: Path, data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Read the header only; raises Failure that names the file for what cannot be read or is too large to decode."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise Failure(f"{path}: {error}") from None
    except UnidentifiedImageError:  # its message shows the object that held the bytes
        raise Failure(f"{path}: not a readable {', '.join(formats)} file") from None
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        raise Failure(f"{path}: not a readable {', '.join(formats)} file ({error})") from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise Failure(f"{path}: {size} is more than {MAX_PIXELS / 1e6:.0f} megapixels; make it smaller")
    if image.format == "PNG" and (problem := png_damage(data)):
        raise Failure(f"{path} is damaged ({problem}); fetch it again")
    return image


def load_pixels(path: Path, image: Image.Image) -> None:
    """Decode an opened picture; raises Failure that names the file."""
    try:
        image.load()
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        raise Failure(f"{path}: cannot be decoded ({error}); fetch it again") from None


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 to JPEG: quality 95, 4:2:0 as nearly all photos, with the exact DCT."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", colorsubsampling="420", fastdct=False
    )
    return data


def encode_png(labels: np.ndarray) -> bytes:
    """(H, W) uint8 to an 8-bit grey PNG, made to be read often.

    Rows without a filter need nothing but `inflate` to be read back. At 256 x 256, us per mask to encode and inflate,
    and bytes: level 2 takes 121, 47 and 2,025, level 6 378, 45 and 1,267; filter "up" with zlib's run-length
    strategy 126, 113 and 1,831, and its sums on top.
    """
    height, width = labels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # the first byte of each is its filter: none
    rows[:, 1:] = labels
    stream = zlib.compressobj(PNG_LEVEL)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", stream.compress(rows.data) + stream.flush()),
        (b"IEND", b""),
    )
    framed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return PNG_SIGNATURE + b"".join(framed)


def png_damage(png: bytes) -> str:
    """Say which part of a PNG is not as it was written; empty if the file is whole.

    Pillow skips the checksums of pixel data, and fills up with zeros what a short stream of them leaves open.
    """
    data = memoryview(png)
    if data[: len(PNG_SIGNATURE)] != PNG_SIGNATURE:
        return "it does not begin as a PNG"
    offset, header, pixel_data = len(PNG_SIGNATURE), b"", []
    while True:
        num_bytes, kind = int.from_bytes(data[offset : offset + 4], "big"), bytes(data[offset + 4 : offset + 8])
        end = offset + 12 + num_bytes
        if end > len(data):
            return f"it is cut short after {len(data)} bytes"
        if zlib.crc32(data[offset + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"the chunk at byte {offset} does not match its checksum"
        content = data[offset + 8 : end - 4]
        if kind == b"IHDR":
            header = bytes(content)
        elif kind == b"IDAT":
            pixel_data.append(content)
        elif kind == b"IEND":
            return _short_of_pixels(header, pixel_data)
        offset = end


def _short_of_pixels(header: bytes, pixel_data: list[memoryview]) -> str:
    if len(header) != HEADER_BYTES:
        return "it has no header"
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if interlaced:
        return ""
    wanted = height * (1 + (width * depth * CHANNELS.get(colour, 1) + 7) // 8)  # each row has a byte for its filter
    stream, num_bytes = zlib.decompressobj(), 0
    try:
        for part in pixel_data:
            num_bytes += len(stream.decompress(part, wanted - num_bytes + 1))
            if num_bytes >= wanted:
                return ""
    except zlib.error as error:
        return f"its pixels cannot be decompressed ({error})"
    return f"it has {num_bytes} of the {wanted} bytes of its pixels"
