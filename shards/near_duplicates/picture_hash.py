"""A perceptual hash of each picture, and the pairs of near-identical pictures that lie in two splits.

A difference hash: the picture is shrunk to 17 x 16 cells, and each bit says whether a cell is darker than the one to
its right (256 bits). Two pictures are taken for the same one if at most MAX_DISTANCE of the bits differ. Among 1,567 of
the photos that `pack --download` fetches (1.2 million pairs) the pairs that show the same photo differ in 1, 2 and 13
bits, and the nearest pair of different photos in 44. Of 300 photos saved again at JPEG quality 50 the hash changed by 4
bits in the median and by 14 at most, at half the size by 5 and 17, squashed to 64 px by 10 and 24, cropped by 1 % on
each side by 12 and 30. A crop of 3 % changes 38: such copies are not found. Hashes of 64 bits separate worse: there a
white dog on a sofa and a grey cat on a carpet differ in 4 bits, and two crops of one photo in 6.
"""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.encoding import MAX_PIXELS
from shards.files import open_regular
from shards.index import load_index
from shards.manifest import Manifest, Shard
from shards.near_duplicates.note import MAX_PAIRS_NAMED, NearDuplicates, Pair
from shards.pool import ordered_map
from shards.terminal import progress

METHOD = "dhash-16x16"
SIDE = 16  # cells
MAX_DISTANCE = 24  # bits of 256
MIN_STEP = 2  # grey levels: without it noise decides the bits of flat areas (JPEG quality 50: 29 bits, not 14)
MAX_COMPARISONS = 10**10  # two minutes; between larger sets only equal hashes are looked for
CHUNK_ROWS = 512
MAX_PAIRS_KEPT = 50 * MAX_PAIRS_NAMED  # in memory at a time

Hashes = Mapping[str, Mapping[str, str]]  # split -> key -> 64 hex digits

logger = logging.getLogger(__name__)


def pixels_hash(pixels: np.ndarray) -> str:
    """The hash of a picture, (H, W, 3) uint8, as 64 hex digits.

    Of its green channel, which is most of the brightness: to make a grey picture takes three times as long.
    """
    green = Image.fromarray(np.ascontiguousarray(pixels[..., 1]))
    cells = np.asarray(green.resize((SIDE + 1, SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(cells[:, 1:] - cells[:, :-1] > MIN_STEP).tobytes().hex()


def picture_hash(data: bytes) -> str:
    """The hash of an encoded picture. Raises ValueError or OSError if it cannot be decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures, which are refused here
        try:
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"))
        except UnidentifiedImageError:  # its message shows the object that held the bytes
            raise ValueError("it is no picture that can be read") from None
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} is more than {MAX_PIXELS / 1e6:.0f} megapixels")
            with suppress(ValueError):  # no JPEG, or one that libjpeg-turbo cannot make RGB
                return pixels_hash(simplejpeg.decode_jpeg(data, "RGB", strict=False))
            return pixels_hash(np.asarray(image.convert("RGB")))


def find_duplicates(hashes: Hashes, manifest_hash: str) -> NearDuplicates:
    """The pairs of near-identical pictures of which one is in another split than the other."""
    nearest: list[Pair] = []
    counts, distance = dict[str, int](), _reach(hashes)
    for one, other in itertools.combinations(hashes, 2):
        count = 0
        for key, twin, bits in _pairs(hashes[one], hashes[other], distance):
            count += 1
            nearest.append(Pair(key, one, twin, other, bits))
            if len(nearest) >= MAX_PAIRS_KEPT:  # the frames of a video that is in two splits make millions of pairs
                nearest = _nearest(nearest)
        counts[f"{one}-{other}"] = count
    return NearDuplicates(manifest_hash, METHOD, distance, counts, tuple(_nearest(nearest)), hashes)


def _nearest(pairs: list[Pair]) -> list[Pair]:
    """The pairs that are named, from the most alike on."""
    return sorted(pairs, key=lambda pair: (pair.distance, pair.key, pair.other))[:MAX_PAIRS_NAMED]


def twins_in_train(hashes: Hashes) -> list[str]:
    """Keys of train whose picture is near-identical to one of val or test, sorted."""
    others = {key: value for split in ("val", "test") for key, value in hashes.get(split, {}).items()}
    return sorted({key for key, _, _ in _pairs(hashes.get("train", {}), others, _reach(hashes))})


def _reach(hashes: Hashes) -> int:
    """How many bits may differ: none where comparing all pairs would take too long."""
    sizes = [len(keys) for keys in hashes.values()]
    comparisons = sum(one * other for one, other in itertools.combinations(sizes, 2))
    if comparisons <= MAX_COMPARISONS:
        return MAX_DISTANCE
    logger.warning("%s pairs of pictures are too many to compare: only equal hashes are found", f"{comparisons:,}")
    return 0


def _pairs(one: Mapping[str, str], other: Mapping[str, str], distance: int) -> Iterator[tuple[str, str, int]]:
    """(key of `one`, key of `other`, bits that differ) of those that differ in at most `distance` bits."""
    keys, twins = list(one), list(other)
    if distance == 0:
        by_hash: dict[str, list[str]] = {}
        for key, value in other.items():
            by_hash.setdefault(value, []).append(key)
        yield from ((key, twin, 0) for key, value in one.items() for twin in by_hash.get(value, ()))
        return
    rows, columns = _signs(one.values()), _signs(other.values())
    for start in range(0, len(keys), CHUNK_ROWS):
        bits = (SIDE * SIDE - rows[start : start + CHUNK_ROWS] @ columns.T) / 2  # a product of +-1 counts what differs
        for row, column in np.argwhere(bits <= distance):
            yield keys[start + row], twins[column], int(bits[row, column])


def _signs(values: Iterable[str]) -> NDArray[np.float32]:
    """(N, 256) of the hashes' bits, +1 or -1: sums of them are exact in float32."""
    packed = np.frombuffer(b"".join(map(bytes.fromhex, values)), np.uint8).reshape(-1, SIDE * SIDE // 8)
    return 2 * np.unpackbits(packed, axis=1).astype(np.float32) - 1


def hash_set(folder: Path, manifest: Manifest, num_workers: int) -> Hashes:
    """The hashes of all pictures of a set, read from its tars; those that cannot be decoded are left out.

    Raises ValueError if an index or a tar is missing or damaged.
    """
    hashes: dict[str, dict[str, str]] = {split: {} for split in manifest.splits}
    total = sum(split.num_samples for split in manifest.splits.values())
    with progress("hashed", total) as advance:
        results = ordered_map(partial(_hash_shard, folder), manifest.shards, num_workers=num_workers)
        for shard, found in zip(manifest.shards, results, strict=True):
            hashes[shard.split].update(found)
            advance(shard.num_samples)
    return hashes


def _hash_shard(folder: Path, shard: Shard) -> dict[str, str]:
    found = {}
    with open_regular(folder / shard.name) as file:
        for sample in load_index(folder, shard.name):
            file.seek(sample.jpg.offset)
            try:
                found[sample.key] = picture_hash(file.read(sample.jpg.num_bytes))
            except (ValueError, OSError, Image.DecompressionBombError) as error:
                logger.warning("%s in %s has no hash: %s", sample.key, shard.name, error)
    return found
