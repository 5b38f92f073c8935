"""How many classes a batch has, by the plan: worked out by hand, and counted on sorted and on mixed shards."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petseg.data.mixing import Mixing, classes_of_keys, expected_classes, measure_mixing, mixing_of
from petseg.data.plan import EpochOrder
from petseg.data.store import LocalStore
from petseg.training.loop import train
from shards.manifest import load_manifest, save_manifest


def test_expected_classes_by_counting_all_batches() -> None:
    classes = [0, 0, 0, 1, 1, 2]
    batches = list(itertools.combinations(classes, 3))
    by_hand = sum(len(set(batch)) for batch in batches) / len(batches)
    assert expected_classes([3, 2, 1], 3) == pytest.approx(by_hand)
    assert expected_classes([3, 2, 1], 6) == pytest.approx(3)
    assert expected_classes([4], 2) == pytest.approx(1)


def test_the_oxford_pets_in_batches_of_16() -> None:
    """37 classes of 90 pictures: 37 (1 - C(3240, 16) / C(3330, 16))."""
    assert expected_classes([90] * 37, 16) == pytest.approx(13.15, abs=0.02)


@pytest.mark.parametrize(("window", "seen"), [(1, 1.0), (2, 2.0)])
def test_sorted_shards_give_as_many_classes_as_the_window_has_shards(window: int, seen: float) -> None:
    """8 shards of one class each and 32 samples, read in batches that fill a window to the end."""
    order, classes = EpochOrder([32] * 8, window, 0, 1), np.repeat(np.arange(8), 32)
    found = measure_mixing(order, classes, 32, window)
    assert found.seen == pytest.approx(seen)
    assert found.possible == pytest.approx(expected_classes([32] * 8, 32))
    assert found.is_poor


def test_a_window_over_all_shards_is_as_good_as_it_gets() -> None:
    order, classes = EpochOrder([32] * 8, 8, 0, 1), np.repeat(np.arange(8), 32)
    found = measure_mixing(order, classes, 8, 8)
    assert found.seen == pytest.approx(found.possible, rel=0.1)
    assert not found.is_poor


def test_it_is_said_with_the_numbers() -> None:
    assert str(Mixing(3.61, 12.94, 1, 13)) == (
        "a shuffle window of 1 shard sees 3.6 of the 12.9 classes that a batch can have: the shards are sorted by "
        "class; raise data.shuffle_window_shards (there are 13)"
    )


def test_classes_of_keys() -> None:
    assert classes_of_keys(["pug_1", "pug_2", "great_pyrenees_1", "great_pyrenees_7"]).tolist() == [1, 1, 0, 0]
    for keys in (["0001", "0002"], ["a_1", "b"], ["a_1", "a_2"], ["a_1", "b_1"], ["_1", "_2", "a_1", "a_2"]):
        assert classes_of_keys(keys) is None


def test_a_set_that_petseg_packed_is_mixed(pet_shards: Path) -> None:
    store = LocalStore(str(pet_shards))
    assert len(store.manifest.of_split("train")) == 2
    found = mixing_of(store, 1, 8, 0)
    assert found is None or not found.is_poor
    assert mixing_of(store, 2, 8, 0) is None


def test_training_names_a_set_with_an_empty_split(pet_shards: Path, tmp_path: Path, tiny) -> None:
    shards = Path(shutil.copytree(pet_shards, tmp_path / "set"))
    manifest = load_manifest(shards)
    config = tiny(data__shards=str(shards), train__epochs=1)
    splits = {"train": manifest.splits["train"]}
    of_train = tuple(shard for shard in manifest.shards if shard.split == "train")
    save_manifest(replace(manifest, splits=splits, shards=of_train), shards)
    with pytest.raises(
        ValueError, match=r"has no samples in its split 'val' \(samples: 27 train\): choose another set"
    ):
        train(config, tmp_path / "run")
