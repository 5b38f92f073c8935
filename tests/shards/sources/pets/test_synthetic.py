"""Drawn pets: the same files for the same arguments, in the data set's layout, and like it in their shares."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.sources.pets.oxford import read_folder
from shards.sources.pets.synthetic import BREEDS, breed_of, draw_folder, draw_pets


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_byte_for_byte_with_any_number_of_processes(tmp_path: Path) -> None:
    for name, seed, workers in (("one", 3, 1), ("two", 3, 2), ("other", 4, 1)):
        draw_folder(tmp_path / name, number=20, seed=seed, longer_side_px=40, num_workers=workers)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    one, other = files_of(tmp_path / "one"), files_of(tmp_path / "other")
    assert one.keys() == other.keys()
    assert one["images/beagle_1.jpg"] != other["images/beagle_1.jpg"]


def test_a_pet_does_not_depend_on_the_others() -> None:
    assert draw_pets(range(5, 6), seed=0, longer_side_px=40) == draw_pets(range(8), seed=0, longer_side_px=40)[5:6]


def test_splits_of_a_small_set(drawn: Path) -> None:
    folder = read_folder(drawn)
    assert folder.source.name == "synthetic-pets"
    assert folder.oddities == {}
    assert Counter(pet.split for pet in folder.samples) == {"train": 27, "val": 3, "test": 30}
    assert {pet.species for pet in folder.samples if pet.split == "train"} == {"cat", "dog"}


def test_breeds_are_the_real_ones(pets_root: Path) -> None:
    real = {(pet.class_id, pet.breed, pet.species) for pet in read_folder(pets_root).samples}
    ours = {(*breed_of(index)[:2], look.species) for index, look in enumerate(BREEDS.values())}
    assert ours == real
    assert len(ours) == 37


def test_trimaps_are_like_the_real_ones() -> None:
    shares = []
    for pet in draw_pets(range(74), seed=0, longer_side_px=96):
        (width, height), trimap = _open(pet.jpg).size, np.asarray(_open(pet.png))
        assert trimap.shape == (height, width)
        assert max(width, height) <= 96
        shares.append([(trimap == value).mean() for value in (1, 2, 3)])
        assert set(np.unique(trimap)) == {1, 2, 3}
    real = (0.31, 0.57, 0.12)
    assert np.abs(np.mean(shares, axis=0) - real).max() < 0.05


def test_colour_alone_does_not_tell_the_pet() -> None:
    """The best threshold on any one colour channel gets hardly further than calling everything pet."""
    pixels, is_pet = [], []
    for pet in draw_pets(range(74), seed=0, longer_side_px=48):
        pixels.append(np.asarray(_open(pet.jpg)).reshape(-1, 3))
        is_pet.append(np.asarray(_open(pet.png)).ravel() != 2)
    colours, pet_mask = np.concatenate(pixels), np.concatenate(is_pet)

    def dice(guess: np.ndarray) -> float:
        return float(2 * (guess & pet_mask).sum() / (guess.sum() + pet_mask.sum()))

    thresholds = [colours[:, channel] > level for channel in range(3) for level in range(20, 240, 20)]
    best = max(dice(guess) for mask in thresholds for guess in (mask, ~mask))
    assert best < dice(np.ones_like(pet_mask)) + 0.05


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 drawn pets are too few"):
        draw_folder(tmp_path / "few", number=3, seed=0)
    with pytest.raises(ValueError, match="too small for a pet"):
        draw_folder(tmp_path / "tiny", number=4, seed=0, longer_side_px=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty"):
        draw_folder(tmp_path / "full", number=4, seed=0)
