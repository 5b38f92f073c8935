"""The masks that a finished run keeps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from petseg.config import RunConfig
from petseg.data.store import open_store
from petseg.evaluation.measure import predict
from petseg.metrics.masks import Masks, load_masks, save_masks, store
from petseg.run.parts import build_parts
from petseg.run_folder.checkpoint import choose_checkpoint
from petseg.run_folder.layout import VAL_MASKS_NAME
from petseg.run_folder.restore import load_weights
from petseg.training.loop import train


@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=19), elements=st.integers(0, 1)))
def test_packed_masks_come_back(masks: np.ndarray) -> None:
    bits = store(masks, packed=True)
    assert bits.shape == (*masks.shape[:2], -(-masks.shape[2] // 8))
    found = Masks(("a",) * len(masks), masks.shape[2], bits, packed=True)
    assert all(np.array_equal(found.of(i), mask) for i, mask in enumerate(masks))


def test_masks_of_many_classes_come_back(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).integers(0, 12, (3, 5, 9), dtype=np.uint8)
    save_masks(Masks(("a", "b", "c"), 9, store(masks, packed=False), packed=False), tmp_path)
    found = load_masks(tmp_path)
    assert found is not None
    assert not found.packed
    assert np.array_equal(np.stack([found.of(i) for i in range(3)]), masks)


def test_a_rows_first_pixel_is_the_highest_bit() -> None:
    mask = np.zeros((1, 1, 10), np.uint8)
    mask[0, 0, [0, 9]] = 1
    assert store(mask, packed=True).tolist() == [[[0b10000000, 0b01000000]]]


def test_file_is_small_whole_and_the_same_each_time(tmp_path: Path) -> None:
    y, x = np.mgrid[:256, :256]
    masks = np.stack([(y - 128) ** 2 + (x - 128) ** 2 < (40 + i % 60) ** 2 for i in range(64)])
    keys = tuple(f"Birman_{i}" for i in range(64))
    (tmp_path / "again").mkdir()
    for folder in (tmp_path, tmp_path / "again"):
        save_masks(Masks(keys, 256, store(masks, packed=True), packed=True), folder)
    content = (tmp_path / VAL_MASKS_NAME).read_bytes()
    assert content == (tmp_path / "again" / VAL_MASKS_NAME).read_bytes()
    assert len(content) < 64 * 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", VAL_MASKS_NAME]
    found = load_masks(tmp_path)
    assert found is not None
    assert found.keys == keys
    assert np.array_equal(found.of(3), masks[3])


@pytest.mark.parametrize("damage", ["missing", "cut", "other arrays", "fewer keys", "narrower", "pickled"])
def test_other_files_are_no_masks(tmp_path: Path, damage: str) -> None:
    path, bits = tmp_path / VAL_MASKS_NAME, np.zeros((2, 4, 1), np.uint8)
    keys: np.ndarray = np.array(["a", "b"])
    if damage == "cut":
        save_masks(Masks(("a", "b"), 8, bits, packed=True), tmp_path)
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "other arrays":
        np.savez(path, keys=keys)
    elif damage == "fewer keys":
        np.savez(path, keys=keys[:1], width=np.array(8), bits=bits)
    elif damage == "narrower":
        np.savez(path, keys=keys, width=np.array(9), bits=bits)
    elif damage == "pickled":
        np.savez(path, keys=keys.astype(object), width=np.array(8), bits=bits)
    assert load_masks(tmp_path) is None


@given(st.integers(1, 40))
def test_a_mask_keeps_its_width(width_px: int) -> None:
    masks = Masks(("a",), width_px, store(np.ones((1, 2, width_px), np.uint8), packed=True), packed=True)
    assert masks.of(0).shape == (2, width_px)
    assert masks.of(0).all()


def test_they_are_the_best_weights_predictions_in_the_order_of_the_split(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny(train__epochs=1)
    train(config, tmp_path)
    masks = load_masks(tmp_path)
    assert masks is not None
    with np.load(tmp_path / "per_image.npz") as arrays:
        assert masks.keys == tuple(arrays["val/keys"].tolist())
        called = arrays["val/counts"][:, :2].sum(axis=1)  # true and false positives: border=fg counts all pixels
    assert [int(masks.of(i).sum()) for i in range(len(masks.keys))] == called.tolist()

    parts = build_parts(config, open_store(config.data.shards), tmp_path, splits=["val"])
    load_weights(choose_checkpoint(tmp_path, "best").folder, parts.bare_model)
    for i, picture in enumerate(predict(parts, "val", range(len(masks.keys)))):
        assert picture.key == masks.keys[i]
        assert re.fullmatch(r"[A-Za-z_]+_\d+", picture.key)
        assert np.array_equal(picture.prediction, masks.of(i))
    parts.close()


def write(folder: Path, **arrays: np.ndarray) -> None:
    np.savez(folder / VAL_MASKS_NAME, **arrays)


def whole(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"keys": np.array(["a", "b"]), "width": np.array(9), "bits": np.zeros((2, 4, 2), np.uint8), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": np.zeros((2, 4, 2), np.int16)},
        {"bits": np.zeros((2, 8), np.uint8)},
        {"bits": np.zeros((2, 4, 2, 1), np.uint8)},
        {"bits": np.zeros((3, 4, 2), np.uint8)},
        {"bits": np.zeros((2, 4, 3), np.uint8)},
        {"width": np.array(17)},
        {"width": np.array(-9)},
        {"width": np.array([9, 9])},
        {"keys": np.array(["a"])},
    ],
)
def test_arrays_that_do_not_fit_each_other_are_no_masks(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    write(tmp_path, **whole())
    assert load_masks(tmp_path) is not None
    write(tmp_path, **whole(**changes))
    assert load_masks(tmp_path) is None


def test_classes_have_as_many_columns_as_pixels(tmp_path: Path) -> None:
    for width, fits in ((5, True), (8, False), (4, False)):
        write(tmp_path, keys=np.array(["a"]), width=np.array(width), classes=np.zeros((1, 2, 5), np.uint8))
        assert (load_masks(tmp_path) is not None) == fits


def test_keys_of_a_stranger_cannot_steer_a_terminal_and_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, **whole(keys=np.array(["a\x1b[2Jb", "c"])))
    found = load_masks(tmp_path)
    assert found is not None
    assert "\x1b" not in found.keys[0]
    assert found.keys[1] == "c"
    (tmp_path / VAL_MASKS_NAME).rename(tmp_path / "elsewhere")
    (tmp_path / VAL_MASKS_NAME).symlink_to(tmp_path / "elsewhere")
    assert load_masks(tmp_path) is None


def test_any_class_but_0_is_a_bit(tmp_path: Path) -> None:
    classes = np.array([[[0, 1, 2, 255, 0, 0, 0, 0, 3]]], np.uint8)
    masks = Masks(("a",), 9, store(classes, packed=True), packed=True)
    save_masks(masks, tmp_path)
    found = load_masks(tmp_path)
    assert found is not None
    assert (found.keys, found.width_px, found.packed) == (("a",), 9, True)
    assert found.of(0).tolist() == [[0, 1, 1, 1, 0, 0, 0, 0, 1]]
    assert store(classes, packed=False) is classes
