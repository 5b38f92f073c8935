"""What is a sign of damage in a picture that decodes without a warning, and what is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.packing.suspects import BLOCK_PX, MIN_RUN_BYTES, _longest_true, flat_share, longest_run, scans, why_suspect


def noise(height: int = 320, width: int = 320) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@given(st.binary(max_size=300), st.integers(MIN_RUN_BYTES, 600), st.integers(0, 255), st.binary(max_size=300))
def test_each_long_run_of_a_byte_is_found(before: bytes, length: int, value: int, after: bytes) -> None:
    at, found = longest_run(before + bytes([value]) * length + after)
    assert found >= length
    assert at <= len(before) < at + found


@given(st.binary(max_size=200), st.integers(0, MIN_RUN_BYTES // 2), st.integers(0, 255))
def test_no_short_run_counts(before: bytes, length: int, value: int) -> None:
    data = before.rstrip(bytes([value])) + bytes([value]) * length
    assert longest_run(data) == (0, 0)


@pytest.mark.parametrize("progressive", [False, True])
def test_only_compressed_data_are_looked_at(make, progressive: bool) -> None:
    """Not the padding of a comment, of a thumbnail's header or of a trailer: cameras write those."""
    padding = bytes(4096)
    jpg = make["encode"](Image.fromarray(noise()), comment=padding, progressive=progressive)
    assert why_suspect(jpg + padding, noise()) == ""
    stretches = list(scans(jpg))
    assert (len(stretches) > 1) == progressive
    assert jpg[stretches[-1][1] :] == b"\xff\xd9"
    start = stretches[-1][0]
    assert f"4096 bytes of 0x00 from byte {start}" in why_suspect(jpg[:start] + padding + jpg[start:], noise())


@given(st.binary(max_size=600))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    for start, end in scans(b"\xff\xd8\xff\xda\x00\x02" + data):
        assert 0 <= start <= end <= len(data) + 6


@pytest.mark.parametrize(
    ("rows", "columns", "level", "is_suspect"),
    [
        (slice(240, 320), slice(0, 320), 128, True),  # a quarter
        (slice(288, 320), slice(0, 320), 128, True),  # a tenth
        (slice(304, 320), slice(0, 320), 128, False),  # less than a sixteenth
        (slice(40, 150), slice(0, 320), 128, False),  # in the upper half
        (slice(160, 320), slice(0, 160), 128, False),  # no run: each row of blocks begins anew
    ],
)
def test_a_large_flat_lower_part(rows: slice, columns: slice, level: int, is_suspect: bool) -> None:
    pixels = noise()
    pixels[rows, columns] = level
    assert bool(flat_share(pixels)) == is_suspect
    assert bool(why_suspect(b"", pixels)) == is_suspect


def test_an_area_that_is_flat_in_one_colour_only_is_no_sign() -> None:
    """Such as a lawn of one red. The middles of the blocks, which are looked at first, are the same all the same."""
    pixels = noise()
    pixels[240:, :, 0] = 128
    pixels[240:, :, 1:] = np.random.default_rng(1).choice([0, 200], (80, 320, 2))
    pixels[240 + BLOCK_PX // 2 :: BLOCK_PX, BLOCK_PX // 2 :: BLOCK_PX, 1:] = 0
    assert flat_share(pixels) == 0


def test_a_run_that_begins_within_a_row() -> None:
    pixels = noise()
    pixels[256:272, 160:], pixels[272:] = 128, 128
    assert flat_share(pixels) == (10 + 3 * 20) / 400


def test_frames_backdrops_and_small_pictures_are_no_sign() -> None:
    frame = noise()
    frame[:40] = frame[280:] = 0
    assert flat_share(frame) == 0
    assert flat_share(np.full((320, 320, 3), 255, np.uint8)) == 0
    for side in (0, 1, 15, 16, 40):
        pixels = noise(side, side)
        pixels[side // 2 :] = 9
        assert flat_share(pixels) == 0


@pytest.mark.parametrize(
    ("values", "run"),
    [
        ("", (0, 0)),
        ("...", (0, 0)),
        ("###", (0, 3)),
        ("..##", (2, 2)),
        ("##..", (0, 2)),
        ("#.##.###.#", (5, 3)),
        (".##.##.", (1, 2)),  # the first of two
    ],
)
def test_the_longest_run_by_hand(values: str, run: tuple[int, int]) -> None:
    assert _longest_true(np.array([value == "#" for value in values], bool)) == run


def test_a_flat_part_is_compared_with_the_upper_edge_by_its_own_colour() -> None:
    """The longest run is not the first: a short one of the frame's colour lies before it."""
    pixels = noise()
    pixels[:BLOCK_PX] = 30
    pixels[168:184, :64] = 30
    pixels[240:, :] = 128
    assert flat_share(pixels) > 0
    pixels[:BLOCK_PX] = 128
    assert flat_share(pixels) == 0


def with_flat_end(blocks: int, height: int = 320, width: int = 320) -> np.ndarray:
    """Noise whose last blocks, in reading order, are of one colour."""
    pixels, columns = noise(height, width), width // BLOCK_PX
    for number in range(height // BLOCK_PX * columns - blocks, height // BLOCK_PX * columns):
        top, left = number // columns * BLOCK_PX, number % columns * BLOCK_PX
        pixels[top : top + BLOCK_PX, left : left + BLOCK_PX] = 128
    return pixels


@pytest.mark.parametrize(
    ("blocks", "height", "width", "share"),
    [
        (24, 320, 320, 0),
        (25, 320, 320, 25 / 400),
        (7, 128, 128, 0),
        (8, 128, 128, 8 / 64),
        (100, 160, 640, 100 / 400),
        (100, 640, 160, 100 / 400),
        (100, 175, 655, 100 / 400),  # with blocks that are cut off
    ],
)
def test_a_flat_share_is_counted_in_blocks(blocks: int, height: int, width: int, share: float) -> None:
    assert flat_share(with_flat_end(blocks, height, width)) == share


@pytest.mark.parametrize(("levels", "is_flat"), [(2, True), (3, False)])
def test_how_much_a_flat_area_may_vary(levels: int, is_flat: bool) -> None:
    """Between blocks, and within one."""
    between, within = with_flat_end(100), with_flat_end(100)
    for left in range(0, 320, 2 * BLOCK_PX):
        between[240:, left : left + BLOCK_PX] += np.uint8(levels)
    within[240::2] += np.uint8(levels)
    assert flat_share(between) == flat_share(within) == (100 / 400 if is_flat else 0)


def test_a_frame_is_told_by_the_first_row_of_pixels() -> None:
    pixels = with_flat_end(100)
    pixels[0, :160] = 128  # half of it is not enough
    assert flat_share(pixels) == 100 / 400
    pixels[0, :161] = 124
    assert flat_share(pixels) == 0
    pixels[0, :161] = 123
    assert flat_share(pixels) == 100 / 400


def test_fill_bytes_and_markers_without_a_length_are_passed_over() -> None:
    app0, scan = b"\xff\xe0\x00\x04ab", b"\xff\xda\x00\x02"
    data = b"\x12\xff\x00\x34\xff\xd0\x56\xff\xff"
    jpg = b"\xff\xd8\xff" + app0 + b"\xff\x01\xff\xff" + scan + data + app0 + scan + b"\x78\xff\xd9" + scan
    assert [jpg[start:end] for start, end in scans(jpg)] == [data, b"\x78"]
    assert list(scans(b"\xff\xd8" + scan + b"\x12\x34")) == [(6, 8)]  # up to the end of a file that is cut short
