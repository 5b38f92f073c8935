"""The hash of a picture bit by bit, and the pairs that lie close."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.archive import ShardWriter
from shards.manifest import Manifest, Source, save_manifest, split_of_keys
from shards.near_duplicates import picture_hash as module
from shards.near_duplicates.note import Pair
from shards.near_duplicates.picture_hash import (
    MIN_STEP,
    find_duplicates,
    hash_set,
    picture_hash,
    pixels_hash,
    twins_in_train,
)

GOLDEN = "0e070f0f0f0f0f0f0f0f0f0f0f0f0606f0f0f0f0f0f0f0f0f0f0f0f0f0f00607"


def pixels_of(green: np.ndarray) -> np.ndarray:
    """A picture with noise beside its green channel."""
    noise = np.random.default_rng(0).integers(0, 256, (*green.shape, 3), np.uint8)
    noise[..., 1] = green
    return noise


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def flipped(hexadecimal: str, *bits: int) -> str:
    return f"{int(hexadecimal, 16) ^ sum(1 << bit for bit in bits):064x}"


def test_a_bit_says_that_the_cell_to_the_right_is_brighter_by_more_than_noise() -> None:
    steps = np.zeros((16, 16), int)
    steps[0], steps[1], steps[2, 5], steps[15, 15] = MIN_STEP, MIN_STEP + 1, 40, 40
    green = 200 + np.concatenate([np.zeros((16, 1), int), steps.cumsum(axis=1)], axis=1)
    green[3] = 200 - 10 * np.arange(17)  # darker by as much as may be
    wanted = np.zeros((16, 16), np.uint8)
    wanted[1], wanted[2, 5], wanted[15, 15] = 1, 1, 1
    assert pixels_hash(pixels_of(green.astype(np.uint8))) == np.packbits(wanted).tobytes().hex()


def test_hashes_are_those_of_the_notes_that_are_there() -> None:
    """Notes beside sets hold them: another value for the same picture would be compared in vain."""
    rows, columns = np.mgrid[0:60, 0:90]
    waves = (128 + 60 * np.sin(rows / 9) * np.cos(columns / 7)).astype(np.uint8)
    assert pixels_hash(pixels_of(waves)) == GOLDEN
    assert picture_hash(encoded(pixels_of(waves), "PNG")) == GOLDEN


def test_any_kind_of_picture_has_the_hash_of_its_colours() -> None:
    blocks = np.kron(np.random.default_rng(1).integers(0, 256, (16, 17)), np.ones((8, 8))).astype(np.uint8)
    grey = Image.fromarray(blocks)
    wanted = pixels_hash(np.stack([blocks] * 3, axis=2))
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert picture_hash(encoded(grey, kind)) == wanted
    with_losses = [("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP")]
    for mode, kind in [*with_losses, ("P", "PNG"), ("RGBA", "PNG")]:
        options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
        given = int(picture_hash(encoded(grey.convert(mode), kind, **options)), 16)
        assert (given ^ int(wanted, 16)).bit_count() <= 3


def test_a_picture_is_of_a_known_kind_and_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (30, 20))
    for data in (b"", b"no picture", encoded(image, "PPM")):
        with pytest.raises(ValueError, match=r"^it is no picture that can be read$"):
            picture_hash(data)
    for kind in ("PNG", "JPEG"):
        monkeypatch.setattr(module, "MAX_PIXELS", 600)
        assert picture_hash(encoded(image, kind)) == "0" * 64
        monkeypatch.setattr(module, "MAX_PIXELS", 599)
        with pytest.raises(ValueError, match=r"^30 x 20 is more than 0 megapixels$"):
            picture_hash(encoded(image, kind))


def test_a_file_that_claims_to_be_huge_is_refused_without_a_warning() -> None:
    png = bytearray(encoded(Image.new("L", (30, 20)), "PNG"))
    png[16:24] = struct.pack(">II", 10_000, 10_000)
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match=r"^10000 x 10000 is more than 25 megapixels$"):
        picture_hash(bytes(png))


@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 512])
def test_pairs_are_the_same_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    zero, far = "0" * 64, "f" * 64
    hashes = {
        "train": {
            "a": zero,
            "b": far,
            "c": flipped(zero, *range(24)),
            "d": flipped(zero, *range(25)),
            "e": flipped(far, 3),
        },
        "val": {"x": zero},
        "test": {"y": far, "z": flipped(zero, 255)},
    }
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk_rows)
    found = find_duplicates(hashes, "m")
    assert (found.manifest_hash, found.method, found.max_distance) == ("m", "dhash-16x16", 24)
    assert found.counts == {"train-val": 2, "train-test": 3, "val-test": 1}
    assert found.hashes == hashes
    assert found.pairs == (
        Pair("a", "train", "x", "val", 0), Pair("b", "train", "y", "test", 0), Pair("a", "train", "z", "test", 1),
        Pair("e", "train", "y", "test", 1), Pair("x", "val", "z", "test", 1), Pair("c", "train", "x", "val", 24),
    )  # fmt: skip
    assert twins_in_train(hashes) == ["a", "b", "c", "e"]


def test_equal_hashes_are_all_found_where_nothing_else_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COMPARISONS", 0)
    hashes = {"train": {"a": "0" * 64, "b": "1" * 64}, "val": {"x": "0" * 64, "y": "0" * 64}, "test": {"z": "2" * 64}}
    found = find_duplicates(hashes, "m")
    assert found.pairs == (Pair("a", "train", "x", "val", 0), Pair("a", "train", "y", "val", 0))
    assert found.counts == {"train-val": 2, "train-test": 0, "val-test": 0}
    assert twins_in_train(hashes) == ["a"]
    assert twins_in_train({"train": {"a": "0" * 64}}) == twins_in_train({"val": {"a": "0" * 64}}) == []


def test_only_so_many_pairs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS_NAMED", 2)
    zero = "0" * 64
    hashes = {"train": {"c": flipped(zero, 1, 2), "b": flipped(zero, 1), "a": flipped(zero, 2)}, "val": {"x": zero}}
    found = find_duplicates(hashes, "m")
    assert [(pair.key, pair.distance) for pair in found.pairs] == [("a", 1), ("b", 1)]
    assert found.total == 3


def test_the_hashes_of_a_set_are_by_split_and_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A picture that cannot be decoded has none, and is named."""
    pictures = [encoded(Image.new("RGB", (20, 20), (0, level, 0)), "JPEG") for level in (0, 90)] + [b"none"]
    shards = []
    for split, names in (("train", "abc"), ("test", "d")):
        with ShardWriter(tmp_path, f"{split}-000000.tar", split) as writer:
            for key, data in zip(names, pictures, strict=False):
                writer.add(key, data, b"mask", b"{}")
        shards.append(writer.shard)
    splits = {"train": split_of_keys("abc"), "test": split_of_keys("d")}
    manifest = save_manifest(Manifest(Source("x", ""), {}, splits, tuple(shards)), tmp_path)
    with caplog.at_level(logging.INFO):
        assert hash_set(tmp_path, manifest, 1) == {
            "train": {"a": "0" * 64, "b": "0" * 64}, "test": {"d": "0" * 64},
        }  # fmt: skip
    assert "c in train-000000.tar has no hash: it is no picture that can be read" in caplog.messages
    assert caplog.messages[-1] == "hashed: 4 of 4"
