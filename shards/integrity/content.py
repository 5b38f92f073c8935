"""Decodes the files of one sample, and says whether a training set can hold them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.encoding import MAX_PIXELS, png_damage
from shards.files import decode_json
from shards.packing.orientation import exif_orientation, without_app1

MAX_DECLARED = 8  # values that a message names


def check_content(key: str, jpg: bytes, png: bytes, facts: bytes | None, mask_values: Mapping[str, int]) -> str:
    """Decode a sample's members, and say what is wrong with one of them; empty if a training set can hold them.

    The headers are asked for the sizes before anything is decoded: a small file can claim to be huge.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(jpg, strict=True)[:2]
        if height * width > MAX_PIXELS:
            return _too_large(f"{key}.jpg", width, height)
        height, width = simplejpeg.decode_jpeg(jpg, "RGB", strict=True).shape[:2]
    except ValueError as error:
        return f"{key}.jpg cannot be decoded ({error})"
    if (orientation := _orientation(jpg)) > 1:
        return (
            f"{key}.jpg has the EXIF orientation {orientation}: some readers turn it, and petseg does not, so nobody "
            "can tell which way its mask lies; save the picture without EXIF, turned as its mask is"
        )
    if problem := _check_mask(f"{key}.png", png, (width, height), mask_values):
        return problem
    return "" if facts is None else _check_facts(key, facts)


def _orientation(jpg: bytes) -> int:
    """The EXIF orientation by which some readers turn a picture; 0 or 1 if no reader turns it."""
    if without_app1(jpg) == jpg:
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(jpg), formats=("JPEG",)) as image:
                return exif_orientation(image)
        except Exception:  # Pillow cannot read what libjpeg just has
            return 0


def _check_mask(name: str, png: bytes, size: tuple[int, int], mask_values: Mapping[str, int]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of a size that is refused here anyway
            image = Image.open(io.BytesIO(png), formats=("PNG",))
        with image:
            if image.width * image.height > MAX_PIXELS:
                return _too_large(name, *image.size)
            if image.size != size:
                return f"{name} is {image.width} x {image.height}, its picture {size[0]} x {size[1]}"
            if problem := png_damage(png):
                return f"{name} is damaged ({problem})"
            if image.mode != "L":
                return f"{name} has the pixel format {image.mode}; a mask is 8-bit grey"
            counts = image.histogram()
    except UnidentifiedImageError:  # its message shows the object that held the bytes
        return f"{name} cannot be decoded (it is no PNG)"
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        return f"{name} cannot be decoded ({error})"
    others = [value for value, count in enumerate(counts) if count and value not in mask_values.values()]
    if not others:
        return ""
    named = [f"{value} ({what})" for what, value in mask_values.items()]
    declared = ", ".join([*named[:MAX_DECLARED], *(["..."] if len(named) > MAX_DECLARED else [])])
    return f"{name} has other values than {declared}: {', '.join(map(str, others[:8]))}"


def _too_large(name: str, width: int, height: int) -> str:
    return f"{name} is {width} x {height}, more than {MAX_PIXELS / 1e6:.0f} megapixels"


def _check_facts(key: str, facts: bytes) -> str:
    try:
        found = decode_json(facts)["key"]
    except (ValueError, KeyError, TypeError) as error:
        return f"{key}.json cannot be read ({error!r})"
    return "" if found == key else f"{key}.json is of {found!r}"
