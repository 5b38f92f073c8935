"""Pictures of the best epoch as they are kept in the run's folder and laid out in one sheet for wandb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from petseg.evaluation.measure import PredictedPicture
from petseg.tracking.client import sheet, tile
from petseg.tracking.overlays import MAX_OVERLAYS, MAX_PX, OVERLAY_MASKS_NAME, dice_of, load_overlays, save_overlays
from tests.targets import PET


def picture(size_px: int, key: str = "cat_1") -> PredictedPicture:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size_px, 2 * size_px, 3), np.uint8)
    truth = rng.choice(np.array([0, 1, 255], np.uint8), (size_px, 2 * size_px))
    return PredictedPicture(key, image, truth, (truth == 1).astype(np.uint8), PET)


def test_pictures_are_kept_small_and_their_masks_whole(tmp_path: Path) -> None:
    save_overlays(7, [picture(400, f"cat_{i}") for i in range(MAX_OVERLAYS + 5)], tmp_path)
    epoch, overlays = load_overlays(tmp_path)
    assert epoch == 7
    assert [overlay.key for overlay in overlays] == [f"cat_{i}" for i in range(MAX_OVERLAYS)]
    for overlay in overlays:
        assert overlay.image.shape == (MAX_PX // 2, MAX_PX, 3)
        assert overlay.truth.shape == overlay.prediction.shape == (MAX_PX // 2, MAX_PX)
        assert set(np.unique(overlay.truth)) == {0, 1, 255}
    assert (tmp_path / OVERLAY_MASKS_NAME).stat().st_size < MAX_OVERLAYS * MAX_PX**2  # noise, the worst case
    small = picture(32)
    save_overlays(8, [small], tmp_path)
    _, (kept,) = load_overlays(tmp_path)
    np.testing.assert_array_equal(kept.truth, small.truth)
    np.testing.assert_array_equal(kept.prediction, small.prediction)
    save_overlays(9, [], tmp_path)
    assert load_overlays(tmp_path)[0] == 8


def test_pictures_and_masks_of_a_sheet_lie_in_the_same_cells() -> None:
    sizes = [(2, 3), (3, 2), (3, 3), (1, 1), (2, 2)]
    photos = [np.full((*size, 3), 10 + i, np.uint8) for i, size in enumerate(sizes)]
    masks = [np.full(size, i % 2, np.uint8) for i, size in enumerate(sizes)]
    photo, mask = tile(photos, 0), tile(masks, 255)
    assert (photo.shape, mask.shape) == ((6, 12, 3), (6, 12))
    for i, (height, width) in enumerate(sizes):
        top, left = i // 4 * 3, i % 4 * 3
        assert (photo[top : top + height, left : left + width] == 10 + i).all()
        assert (mask[top : top + height, left : left + width] == i % 2).all()
    assert (mask == 255).sum() == mask.size - sum(height * width for height, width in sizes)
    assert tile(masks[:1], 255).shape == sizes[0]


def test_a_sheet_names_each_picture_and_its_dice(tmp_path: Path) -> None:
    save_overlays(1, [picture(32, f"cat_{i}") for i in range(5)], tmp_path)
    _, overlays = load_overlays(tmp_path)
    assert sheet(overlays, {0: "background", 1: "pet"})._caption == ", ".join(f"cat_{i} 1.000" for i in range(5))


def test_each_picture_keeps_its_own_dice_and_masks(tmp_path: Path) -> None:
    whole, half, none = picture(16, "whole"), picture(16, "half"), picture(16, "none")
    half.prediction[:8] = 0
    none.prediction[:] = 0
    save_overlays(3, [whole, half, none], tmp_path)
    _, kept = load_overlays(tmp_path)
    assert [one.key for one in kept] == ["whole", "half", "none"]
    assert [one.dice for one in kept] == [dice_of(one.truth, one.prediction) for one in (whole, half, none)]
    assert kept[0].dice == 1.0
    assert 0.5 < kept[1].dice < 0.8
    assert kept[2].dice == 0.0


def test_a_tall_picture_is_shrunk_by_its_height(tmp_path: Path) -> None:
    tall = PredictedPicture("tall", *(np.zeros((1000, 2, *rest), np.uint8) for rest in ((3,), (), ())), PET)
    save_overlays(1, [tall], tmp_path)
    _, (kept,) = load_overlays(tmp_path)
    assert kept.image.shape == (MAX_PX, 1, 3)
    assert kept.truth.shape == kept.prediction.shape == (MAX_PX, 1)


def test_a_file_of_an_earlier_version_has_pictures_without_dice(tmp_path: Path) -> None:
    save_overlays(1, [picture(16)], tmp_path)
    with np.load(tmp_path / OVERLAY_MASKS_NAME) as file:
        arrays = {name: file[name] for name in file.files if name != "dice"}
    np.savez(tmp_path / OVERLAY_MASKS_NAME, **arrays)
    _, (kept,) = load_overlays(tmp_path)
    assert np.isnan(kept.dice)


def test_a_damaged_file_is_named_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_overlays(tmp_path)
    save_overlays(1, [picture(16)], tmp_path)
    path = tmp_path / OVERLAY_MASKS_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{path} is damaged \(BadZipFile\): delete it"):
        load_overlays(tmp_path)
