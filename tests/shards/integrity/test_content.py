"""What the check of a sample says of its picture's EXIF."""

from __future__ import annotations

import io
import warnings

import pytest
from PIL import Image

from shards.integrity.content import check_content
from shards.manifest import Source

TRIMAP = Source("", "").values
TRUNCATED = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # an IFD of five entries, and none of them


def jpeg(exif: bytes) -> bytes:
    """Without the JFIF header, so that Pillow looks for the resolution in EXIF as it opens the picture."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24)).save(file, "JPEG", exif=exif)
    content = file.getvalue()
    assert content[6:10] == b"JFIF" or content[6:10] == b"Exif"
    if content[6:10] == b"Exif":
        return content
    return content[:2] + content[4 + int.from_bytes(content[4:6], "big") :]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (32, 24), TRIMAP["pet"]).save(file, "PNG")
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_a_reader_turns_is_refused(orientation: int) -> None:
    found = check_content("pug_1", jpeg(turned(orientation)), png(), None, TRIMAP)
    if orientation == 1:
        assert found == ""
    else:
        assert found.startswith(f"pug_1.jpg has the EXIF orientation {orientation}: some readers turn it")


def test_damaged_exif_turns_nothing_and_is_no_warning_of_pillows() -> None:
    data = jpeg(TRUNCATED)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).close()
        assert told  # Pillow warns by itself
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert check_content("pug_1", data, png(), None, TRIMAP) == ""
        assert told == []
