"""Decodes the bytes of a sample into uint8 arrays at the size of the network, straight into the batch."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from petseg.config.sizes import Size
from petseg.data.letterbox import PAD_LABEL, PAD_RGB, place

Pixels = NDArray[np.uint8]
Buffer = bytes | memoryview

MAX_PIXELS = 25_000_000  # checked in the header before decoding: a small file can decode to a huge picture
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_thread = threading.local()


def decode_image(content: Buffer, out: Pixels, letterbox: bool = False) -> None:
    """JPEG -> out (H, W, 3) uint8 RGB, contiguous; squashed with antialiased bilinear interpolation if need be.

    letterbox: keep its shape, and fill the rest with the mean colour
    Raises ValueError unless it is a whole JPEG of at most 25 megapixels.
    """
    height, width = picture_size(content)
    if (height, width) == out.shape[:2]:
        simplejpeg.decode_jpeg(content, "RGB", buffer=out)
        return
    if letterbox:
        out[...] = PAD_RGB
        out = out[place((height, width), (out.shape[0], out.shape[1])).rows_columns()]
    import torch  # only for squashing: the report reads pictures and labels without it
    import torch.nn.functional as F

    original = simplejpeg.decode_jpeg(content, "RGB", buffer=_scratch(height, width))
    # This view is channels_last, for which torch has a fast path on uint8: a quarter of Pillow's time, and results that
    # differ by a level at most. B = 1 is added first, or torch takes the strides for another layout.
    view = torch.from_numpy(original)[None].permute(0, 3, 1, 2)
    squashed = F.interpolate(view, size=out.shape[:2], mode="bilinear", antialias=True)
    out[...] = squashed[0].permute(1, 2, 0).numpy()


def _scratch(height: int, width: int) -> Pixels:
    """A (height, width, 3) uint8 buffer of this thread, reused because fresh memory costs page faults."""
    size = height * width * 3
    if len(getattr(_thread, "scratch", ())) < size:
        _thread.scratch = np.empty(size, np.uint8)
    return _thread.scratch[:size].reshape(height, width, 3)


def decode_labels(content: Buffer, out: Pixels, letterbox: bool = False) -> None:
    """PNG -> out (H, W) uint8, squashed to the nearest pixel if need be, so that its values stay what they are.

    letterbox: keep its shape, and fill the rest with the label that does not count
    Raises ValueError, OSError or SyntaxError unless it is a whole 8-bit grey PNG of at most 25 megapixels.
    """
    if _decode_plain_png(content, out):
        return
    with _open_labels(content) as labels:
        if letterbox:
            out[...] = PAD_LABEL
            out = out[place((labels.height, labels.width), (out.shape[0], out.shape[1])).rows_columns()]
        size = (out.shape[1], out.shape[0])
        out[...] = np.asarray(labels if labels.size == size else labels.resize(size, Image.Resampling.NEAREST))


def picture_size(content: Buffer) -> Size:
    """Height and width of a JPEG by its header; raises ValueError as `decode_image`."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    _refuse_bomb(width, height)
    return height, width


def decode_whole_image(content: Buffer) -> Pixels:
    """JPEG -> (H, W, 3) uint8 RGB at its own size; raises as `decode_image`."""
    out = np.empty((*picture_size(content), 3), np.uint8)
    simplejpeg.decode_jpeg(content, "RGB", buffer=out)
    return out


def decode_whole_labels(content: Buffer) -> Pixels:
    """PNG -> (H, W) uint8 at its own size; raises as `decode_labels`."""
    with _open_labels(content) as labels:
        out = np.empty((labels.height, labels.width), np.uint8)
        if not _decode_plain_png(content, out):
            out[...] = np.asarray(labels)
    return out


def _open_labels(content: Buffer) -> Image.Image:
    try:
        labels = Image.open(io.BytesIO(content), formats=["PNG"])
    except UnidentifiedImageError:  # its message shows only the BytesIO object
        raise ValueError("the mask is no readable PNG") from None
    _refuse_bomb(*labels.size)
    if labels.mode != "L":
        raise ValueError(f"the mask has mode {labels.mode}, not 8-bit grey")
    return labels


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"its header says {width} x {height}, more than {MAX_PIXELS // 10**6} megapixels")


def _decode_plain_png(content: Buffer, out: Pixels) -> bool:
    """Decode a grey PNG of out's size without row filters, as `shards.pack` writes them: a fifth of Pillow's time.

    False for any other PNG.
    """
    height, width = out.shape
    if bytes(content[:16]) != _PNG_START or len(content) < 41:
        return False
    facts = struct.unpack(">IIBBBBB", content[16:29])
    if facts != (width, height, 8, 0, 0, 0, 0) or bytes(content[37:41]) != b"IDAT":
        return False
    end = 41 + int.from_bytes(content[33:37], "big")
    size = height * (width + 1)
    try:
        data = zlib.decompressobj().decompress(content[41:end], size)
    except zlib.error:
        return False
    if len(data) != size:
        return False
    rows = np.frombuffer(data, np.uint8).reshape(height, width + 1)
    if rows[:, 0].any():
        return False
    out[...] = rows[:, 1:]
    return True
