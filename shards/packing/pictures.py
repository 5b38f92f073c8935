"""One pair of picture and mask: checked, its oddities named, and turned into the bytes that go into a shard.

What a shard promises its readers: KEY.jpg is a three-component JPEG that decodes without a warning, KEY.png is an
8-bit grey PNG of the same size with the values of its labels. Pictures and masks that keep this promise already are not
touched.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from shards.command import Failure
from shards.encoding import MAX_PIXELS, encode_jpeg, encode_png, open_image, read_source_file
from shards.labels.faults import KINDS
from shards.labels.observed import Observed
from shards.near_duplicates.picture_hash import picture_hash, pixels_hash
from shards.packing.orientation import exif_orientation, without_app1
from shards.packing.suspects import why_suspect
from shards.sources.listing import Listed
from shards.sources.pets.oddities import OF_LISTS, OF_MASKS

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")

CORRUPT, SUSPECT = "corrupt_jpeg", "suspect_picture"
ODDITIES = {
    "not_jpeg": "PNG, GIF, BMP, TIFF or WebP: re-encoded as JPEG",
    "not_rgb": "RGBA, palette, CMYK or grey picture: made RGB",
    "corrupt_jpeg": "JPEG that decodes with a warning: damaged; decoded as far as it goes, re-encoded",
    "suspect_picture": "picture that may be damaged: a run of one byte in its file, or a flat lower part: look at it",
    "invalid_exif": "EXIF is unreadable or its orientation is none of 1 to 8: EXIF removed",
    "exif_rotation": "EXIF would turn the picture, not its mask: EXIF removed, pixels not turned",
    **OF_MASKS,
    "unlisted_picture": "picture in no list: left out",
    **OF_LISTS,
    "picture_without_mask": "picture without a mask: left out",
    "mask_without_picture": "mask without a picture: left out",
    "apple_double": "._* file of a Mac: left out",
    "near_duplicate": "picture nearly the same as one of val or test: left out of train",
    "mat_file": ".mat file: left out",
    "other_file": "file of another kind: left out",
    **{kind: KINDS[kind].what for kind in ("one_value", "overlap", "lossy", "interpolated")},
}


@dataclass(frozen=True)
class Packed:
    """The three members of one sample, and which oddities it has."""

    key: str
    jpg: bytes
    png: bytes
    json: bytes
    oddities: tuple[str, ...]
    hash: str  # of the picture (shards.near_duplicates.picture_hash)
    doubts: tuple[str, ...] = ()  # in words, with the file's name, why it is corrupt or suspect
    observed: Observed | None = None  # of a mask of classes


@dataclass(frozen=True)
class SourcePicture:
    """A decoded picture, and the file's own bytes where a shard can take them."""

    pixels: np.ndarray  # (H, W, 3) uint8
    jpg: bytes | None
    oddities: tuple[str, ...]
    doubt: str = ""  # in words, why it is corrupt or suspect


def pack_chunk(samples: tuple[Listed, ...], image_size_px: int) -> list[Packed | Failure]:
    """Pack a chunk of samples; a Failure that names the file stands for one that cannot be packed."""
    results: list[Packed | Failure] = []
    for sample in samples:
        try:
            results.append(pack_sample(sample, image_size_px))
        except Failure as failure:
            results.append(failure)
    return results


def pack_sample(sample: Listed, image_size_px: int) -> Packed:
    """Read, check and pack one sample: squashed to a square of `image_size_px`, or original bytes for 0.

    Raises Failure that names the file if the picture or the mask is not what a training set can hold.
    """
    picture = read_picture(sample.picture)
    height, width = picture.pixels.shape[:2]
    mask = sample.read_mask(picture.pixels)
    oddities = picture.oddities + mask.oddities
    jpg = packed_jpeg(picture, image_size_px)
    if image_size_px:
        size = (image_size_px, image_size_px)
        png = encode_png(np.asarray(mask.image.resize(size, Image.Resampling.NEAREST)))  # values are never averaged
    else:
        size = (width, height)
        png = mask.png or encode_png(mask.pixels)
    facts = {
        "key": sample.key,
        "split": sample.split,
        **sample.facts(),
        "width_px": size[0],
        "height_px": size[1],
        "original_width_px": width,
        "original_height_px": height,
        "oddities": oddities,
    }
    doubts = (f"{sample.picture}: {picture.doubt}",) if picture.doubt else ()
    return Packed(
        sample.key, jpg, png, json.dumps(facts).encode(), oddities, hash_of(picture, jpg), doubts, mask.observed
    )


def hash_of(picture: SourcePicture, jpg: bytes) -> str:
    """The hash of a picture as readers of its shard decode it."""
    return pixels_hash(picture.pixels) if jpg is picture.jpg else picture_hash(jpg)


def hash_chunk(samples: tuple[Listed, ...], image_size_px: int) -> list[str | None]:
    """The hashes that the pictures of a chunk have once packed; None for one that cannot be."""
    hashes: list[str | None] = []
    for sample in samples:
        try:
            picture = read_picture(sample.picture)
            jpg = packed_jpeg(picture, image_size_px)
            hashes.append(hash_of(picture, jpg))
        except (Failure, OSError):
            hashes.append(None)  # packing names it
    return hashes


def packed_jpeg(picture: SourcePicture, image_size_px: int) -> bytes:
    """The bytes that stand for a picture in a shard: squashed to a square, or its own for 0, where they can be."""
    if not image_size_px:
        return picture.jpg or encode_jpeg(picture.pixels)
    # Pillow's bilinear widens its kernel when it shrinks: antialiased.
    size = (image_size_px, image_size_px)
    return encode_jpeg(np.asarray(Image.fromarray(picture.pixels).resize(size, Image.Resampling.BILINEAR)))


def read_picture(path: Path) -> SourcePicture:
    """Decode one picture to RGB and name its oddities. Raises Failure that names the file."""
    data = read_source_file(path)
    if (pixels := _decode_plain(data)) is not None:
        return _with_suspicion(SourcePicture(pixels, data, ()), data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is counted here as an oddity, or refused
        image = open_image(path, data, FORMATS)
        if image.mode not in MODES:
            raise Failure(f"{path}: pixel format {image.mode} is none of {', '.join(MODES)}")
        oddities, doubt = [], ""
        is_jpeg = image.format in ("JPEG", "MPO")  # MPO: a JPEG with a second one behind it, as some cameras write
        if not is_jpeg:
            oddities.append("not_jpeg")
        if image.mode != "RGB":
            oddities.append("not_rgb")
        orientation = exif_orientation(image)
        # Pixels are never turned: masks are drawn over the raw pixel array. But readers differ (cv2 turns,
        # Pillow does not), so a picture that some would turn away from its mask loses the tag.
        if orientation != 1:
            oddities.append("exif_rotation" if 2 <= orientation <= 8 else "invalid_exif")
            data = without_app1(data) if is_jpeg else data
        pixels = None
        if is_jpeg:
            pixels, doubt = _decode_strictly(data)
        if doubt:
            oddities.append(CORRUPT)
        if pixels is None:
            pixels = _decode_leniently(path, image)
    as_it_is = is_jpeg and image.mode == "RGB" and not doubt
    picture = SourcePicture(pixels, data if as_it_is else None, tuple(oddities), doubt)
    return _with_suspicion(picture, data if is_jpeg else b"")


def _with_suspicion(picture: SourcePicture, jpg: bytes) -> SourcePicture:
    """Mark a picture as suspect if it looks damaged and is not known to be."""
    if picture.doubt or not (doubt := why_suspect(jpg, picture.pixels)):
        return picture
    return replace(picture, oddities=(*picture.oddities, SUSPECT), doubt=doubt)


def _decode_plain(data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 of a whole colour JPEG without EXIF, as nearly all are; None for what needs a closer look."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return None
    if colorspace != "YCbCr" or height * width > MAX_PIXELS or without_app1(data) != data:
        return None
    return _decode_strictly(data)[0]


def _decode_strictly(jpg: bytes) -> tuple[np.ndarray | None, str]:
    """(H, W, 3) uint8; or None where libjpeg would only warn, and its warning."""
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(jpg, "RGB", strict=True)
    except ValueError as error:
        return None, str(error)
    return pixels, ""


def _decode_leniently(path: Path, image: Image.Image) -> np.ndarray:
    # Two pictures of the official set have a damaged stretch of data, which libjpeg warns of and bridges: refusing
    # them would refuse the set. A file that was cut short is another matter (a copy that went wrong), and Pillow
    # raises for it; so it does for whatever else it cannot decode.
    try:
        # Transparent palettes go to RGB by way of RGBA, or Pillow drops part of the palette's meaning.
        whole = image.convert("RGBA") if image.mode in ("P", "PA") and "transparency" in image.info else image
        return np.asarray(whole.convert("RGB"))
    except Exception as error:  # so do damaged pictures
        raise Failure(f"{path}: cannot be decoded ({error}); fetch it again") from None
