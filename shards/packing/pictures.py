"""One pair of picture and trimap: checked, its oddities named, and turned into the bytes that go into a shard.

What a shard promises its readers: KEY.jpg is a three-component JPEG that decodes without a warning, KEY.png is an
8-bit grey PNG of the same size with the values 1, 2, 3. Bytes that keep this promise already are not touched.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.command import Failure
from shards.encoding import MAX_PIXELS, encode_jpeg, encode_png, png_damage
from shards.files import NotRegular, read_regular
from shards.orientation import exif_orientation, without_app1
from shards.packing.suspects import why_suspect
from shards.picture_hash import picture_hash, pixels_hash
from shards.sources.oxford import Pet

FORMATS = ("JPEG", "PNG", "GIF")
MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")
TRIMAP_VALUES = (1, 3)  # lowest and highest
BACKGROUND = 2

CORRUPT, SUSPECT = "corrupt_jpeg", "suspect_picture"
ODDITIES = {
    "not_jpeg": "GIF or PNG under a .jpg name: re-encoded as JPEG",
    "not_rgb": "RGBA, palette, CMYK or grey picture: made RGB",
    "corrupt_jpeg": "JPEG that decodes with a warning: damaged; decoded as far as it goes, re-encoded",
    "suspect_picture": "picture that may be damaged: a run of one byte in its file, or a flat lower part: look at it",
    "invalid_exif": "EXIF is unreadable or its orientation is none of 1 to 8: EXIF removed",
    "exif_rotation": "EXIF would turn the picture, not its trimap: EXIF removed, pixels not turned",
    "palette_trimap": "trimap is a palette PNG: written as grey values",
    "all_background": "trimap without pet and border",
    "unlisted_picture": "picture in no list: left out",
    "unlisted_trimap": "trimap in no list: left out",
    "apple_double": "._* file of a Mac: left out",
    "near_duplicate": "picture nearly the same as one of val or test: left out of train",
    "mat_file": ".mat file: left out",
    "other_file": "file of another kind: left out",
}


@dataclass(frozen=True)
class Packed:
    """The three members of one sample, and which oddities it has."""

    key: str
    jpg: bytes
    png: bytes
    json: bytes
    oddities: tuple[str, ...]
    hash: str  # of the picture (shards.picture_hash)
    doubts: tuple[str, ...] = ()  # in words, with the file's name, why it is corrupt or suspect


@dataclass(frozen=True)
class SourcePicture:
    """A decoded picture, and the file's own bytes where a shard can take them."""

    pixels: np.ndarray  # (H, W, 3) uint8
    jpg: bytes | None
    oddities: tuple[str, ...]
    doubt: str = ""  # in words, why it is corrupt or suspect


def pack_pets(pets: tuple[Pet, ...], image_size_px: int) -> list[Packed | str]:
    """Pack a chunk of samples; a string, naming the file, stands for one that cannot be packed."""
    results: list[Packed | str] = []
    for pet in pets:
        try:
            results.append(pack_pet(pet, image_size_px))
        except Failure as failure:
            results.append(str(failure))
    return results


def pack_pet(pet: Pet, image_size_px: int) -> Packed:
    """Read, check and pack one sample: squashed to a square of `image_size_px`, or original bytes for 0.

    Raises Failure that names the file if the picture or the trimap is not what a training set can hold.
    """
    picture = read_picture(pet.picture)
    height, width = picture.pixels.shape[:2]
    trimap, png, trimap_oddities = read_trimap(pet.trimap, (width, height), pet.picture)
    oddities = picture.oddities + trimap_oddities
    jpg = packed_jpeg(picture, image_size_px)
    if image_size_px:
        size = (image_size_px, image_size_px)
        png = encode_png(np.asarray(trimap.resize(size, Image.Resampling.NEAREST)))  # values are names, never averaged
    else:
        size = (width, height)
        png = png or encode_png(np.asarray(trimap))
    facts = {
        "key": pet.key,
        "split": pet.split,
        "class_id": pet.class_id,
        "breed": pet.breed,
        "species": pet.species,
        "width_px": size[0],
        "height_px": size[1],
        "original_width_px": width,
        "original_height_px": height,
        "oddities": oddities,
    }
    doubts = (f"{pet.picture}: {picture.doubt}",) if picture.doubt else ()
    return Packed(pet.key, jpg, png, json.dumps(facts).encode(), oddities, hash_of(picture, jpg), doubts)


def hash_of(picture: SourcePicture, jpg: bytes) -> str:
    """The hash of a picture as readers of its shard decode it."""
    return pixels_hash(picture.pixels) if jpg is picture.jpg else picture_hash(jpg)


def hash_pets(pets: tuple[Pet, ...], image_size_px: int) -> list[str | None]:
    """The hashes that the pictures of a chunk have once packed; None for one that cannot be."""
    hashes: list[str | None] = []
    for pet in pets:
        try:
            picture = read_picture(pet.picture)
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
    data = _read(path)
    if (pixels := _decode_plain(data)) is not None:
        return _with_suspicion(SourcePicture(pixels, data, ()), data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is counted here as an oddity, or refused
        image = _open(path, data, FORMATS)
        if image.mode not in MODES:
            raise Failure(f"{path}: pixel format {image.mode} is none of {', '.join(MODES)}")
        oddities, doubt = [], ""
        is_jpeg = image.format in ("JPEG", "MPO")  # MPO: a JPEG with a second one behind it, as some cameras write
        if not is_jpeg:
            oddities.append("not_jpeg")
        if image.mode != "RGB":
            oddities.append("not_rgb")
        orientation = exif_orientation(image)
        # Pixels are never turned: the trimaps were drawn over the raw pixel array. But readers differ (cv2 turns,
        # Pillow does not), so a picture that some would turn away from its trimap loses the tag.
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
    """The same picture; suspect if it is not known to be damaged, and looks so."""
    if picture.doubt or not (doubt := why_suspect(jpg, picture.pixels)):
        return picture
    return replace(picture, oddities=(*picture.oddities, SUSPECT), doubt=doubt)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except NotRegular as error:
        raise Failure(str(error)) from None


def _open(path: Path, data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Read the header only, and refuse what would be too large to decode."""
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


def read_trimap(path: Path, size: tuple[int, int], picture: Path) -> tuple[Image.Image, bytes | None, tuple[str, ...]]:
    """The trimap as 8-bit grey, its own bytes where a shard can take them, and its oddities.

    Raises Failure that names the file for another size (width, height) than the picture's or values not 1, 2, 3.
    """
    data = _read(path)
    image = _open(path, data, ("PNG",))
    if image.size != size:
        theirs, ours = (f"{width} x {height}" for width, height in (image.size, size))
        raise Failure(f"{path} is {theirs}, but its picture {picture} is {ours}")
    if image.mode not in ("L", "P"):
        raise Failure(f"{path}: pixel format {image.mode}; a trimap is 8-bit grey with the values 1, 2, 3")
    try:
        image.load()
    except Exception as error:  # so do damaged pictures
        raise Failure(f"{path}: cannot be decoded ({error}); fetch it again") from None
    is_palette = image.mode == "P"
    trimap = Image.fromarray(np.asarray(image)) if is_palette else image  # palette indices are the values
    pixels = np.asarray(trimap)
    lowest, highest = int(pixels.min()), int(pixels.max())
    if not TRIMAP_VALUES[0] <= lowest <= highest <= TRIMAP_VALUES[1]:
        values = ", ".join(str(value) for value in np.unique(pixels)[:8])
        raise Failure(f"{path} has the values {values}; a trimap has 1 (pet), 2 (background), 3 (border)")
    oddities = ("palette_trimap",) if is_palette else ()
    if lowest == highest == BACKGROUND:
        oddities = (*oddities, "all_background")
    return trimap, None if is_palette else data, oddities
