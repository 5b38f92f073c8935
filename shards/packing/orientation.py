"""The EXIF orientation of a picture: some readers turn the picture by it (cv2), others do not (Pillow, petseg)."""

from __future__ import annotations

import warnings

from PIL import Image

ORIENTATION = 0x0112  # EXIF tag
APP1, START_OF_SCAN = b"\xe1", b"\xda"  # JPEG markers behind their 0xff


def exif_orientation(image: Image.Image) -> int:
    """1 to 8, 1 if there is none, 0 if it is unreadable or not one of these."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Image.Exif().load(image.info.get("exif", b""))  # afresh: Image.open may have parsed, and warned, already
        value = image.getexif().get(ORIENTATION, 1)  # this one knows XMP, too
    except Exception:  # damaged EXIF makes its parsers raise anything: struct.error, SyntaxError, KeyError, warnings
        return 0
    return value if isinstance(value, int) and 1 <= value <= 8 else 0


def without_app1(jpg: bytes) -> bytes:
    """Remove the APP1 segments of a JPEG (EXIF and XMP, which both can hold an orientation)."""
    kept, offset = [jpg[:2]], 2
    while jpg[offset : offset + 1] == b"\xff" and jpg[offset + 1 : offset + 2] != START_OF_SCAN:
        end = offset + 2 + int.from_bytes(jpg[offset + 2 : offset + 4], "big")
        if jpg[offset + 1 : offset + 2] != APP1:
            kept.append(jpg[offset:end])
        offset = end
    return b"".join([*kept, jpg[offset:]])
