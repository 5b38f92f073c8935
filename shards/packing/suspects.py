"""Signs that a picture is damaged although it decodes without a warning.

A JPEG has no checksums. Its decoder often falls into step again behind a lost disk sector, and shows the rest of the
picture in other colours. Its pixels hardly tell, but its file does: compressed data look like noise, a lost sector
does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

# Longest run of one byte in the compressed data of 1,567 published photos: 4. A lost sector has 512. Drawn
# pictures with large flat areas can have hundreds, which is why this is a suspicion and no proof.
MIN_RUN_BYTES = 256
BLOCK_PX = 16  # a JPEG is written in blocks of so many pixels, row by row, and a broken download ends within a row
MIN_FLAT_BLOCKS = 8  # in a row; fewer say nothing in a small picture
MIN_FLAT_SHARE = 1 / 16  # of the picture; the largest that is no frame, among the same 1,567 photos, is 1/25
TOLERANCE = 2  # levels by which a flat area may vary once it has been saved again

_ROW_BYTES = MIN_RUN_BYTES // 2
_PROBES = [1, 2, _ROW_BYTES // 2, _ROW_BYTES - 1]
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # that ends compressed data: no stuffed zero, fill byte or restart


def why_suspect(jpg: bytes, pixels: np.ndarray) -> str:
    """Say why a picture looks damaged; empty if it does not.

    jpg: its file, b"" if that is no JPEG. pixels: (H, W, 3) uint8
    """
    for start, end in scans(jpg):
        at, num_bytes = longest_run(jpg[start:end])
        if num_bytes:
            return f"{num_bytes} bytes of 0x{jpg[start + at]:02x} from byte {start + at} on, as of a lost disk sector"
    share = flat_share(pixels)
    if share:
        return f"{share:.0%} of it, in its lower part, is of one flat colour, as of a download that broke off"
    return ""


def scans(jpg: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of each stretch of compressed data in a JPEG; what follows its end of image is not looked at."""
    at = 2
    while at + 4 <= len(jpg) and jpg[at] == 0xFF:
        marker = jpg[at + 1]
        if marker == _END_OF_IMAGE:
            return
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(jpg[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            found = _MARKER.search(jpg, at)
            end = found.start() if found else len(jpg)
            yield at, end
            at = end


def longest_run(data: bytes) -> tuple[int, int]:
    """(offset, length) of the longest run of one byte, or (0, 0) if it is shorter than MIN_RUN_BYTES."""
    values = np.frombuffer(data, np.uint8)
    # Half as many bytes, and aligned: one such row lies within each run, and few need a closer look
    rows = values[: len(values) // _ROW_BYTES * _ROW_BYTES].reshape(-1, _ROW_BYTES)
    if not (rows[:, _PROBES] == rows[:, :1]).all(-1).any():
        return 0, 0
    starts = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1, [len(values)]))
    lengths = np.diff(starts)
    longest = int(lengths.argmax())
    return (int(starts[longest]), int(lengths[longest])) if lengths[longest] >= MIN_RUN_BYTES else (0, 0)


def flat_share(pixels: np.ndarray) -> float:
    """The longest run of flat blocks of one colour in the lower half, in reading order, as a share of the picture.

    pixels: (H, W, 3) uint8. It is 0 for less than MIN_FLAT_SHARE, and for a colour that the upper edge shows too: that
    of a frame or of a backdrop.
    """
    rows, columns = pixels.shape[0] // BLOCK_PX, pixels.shape[1] // BLOCK_PX
    first, enough = rows // 2, max(MIN_FLAT_BLOCKS, MIN_FLAT_SHARE * rows * columns)
    # One pixel of each block tells nearly all pictures: looking at every pixel takes as long as decoding them
    middles = pixels[BLOCK_PX // 2 :: BLOCK_PX, BLOCK_PX // 2 :: BLOCK_PX][first:rows, :columns].reshape(-1, 3)
    if _longest_true(_alike(middles.astype(np.int16)))[1] + 1 < enough:
        return 0.0
    lower = pixels[first * BLOCK_PX : rows * BLOCK_PX, : columns * BLOCK_PX].astype(np.int16)
    blocks = lower.reshape(rows - first, BLOCK_PX, columns, BLOCK_PX, 3)
    lowest, highest = blocks.min((1, 3)).reshape(-1, 3), blocks.max((1, 3)).reshape(-1, 3)
    is_flat = (highest - lowest <= TOLERANCE).all(-1)
    start, length = _longest_true(_alike(lowest) & is_flat[1:] & is_flat[:-1])
    is_frame = (np.abs(pixels[0].astype(np.int16) - lowest[start]) <= 2 * TOLERANCE).all(-1).mean() > 0.5
    return 0.0 if is_frame or length + 1 < enough else (length + 1) / (rows * columns)


def _alike(colours: np.ndarray) -> np.ndarray:
    """(N, 3) int16 -> (N - 1,) bool: whether each block has the colour of the one before."""
    return np.all(np.abs(np.diff(colours, axis=0)) <= TOLERANCE, axis=-1)


def _longest_true(values: np.ndarray) -> tuple[int, int]:
    """(start, length) of the longest run of True; (0, 0) if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], values.astype(np.int8), [0]))))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])
