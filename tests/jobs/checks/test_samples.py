"""The few real samples that the doctor trains on."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.checks.samples import SMALL_SAMPLES, _moved, first_samples, write_small_set
from petseg.data.store import open_store
from shards.index import NO_MEMBER, Member, Sample
from shards.manifest import load_manifest
from shards.verify import verify


def test_a_small_set_is_a_whole_set_of_the_first_samples(pet_shards: Path, tmp_path: Path) -> None:
    store = open_store(str(pet_shards))
    try:
        small = write_small_set(store, tmp_path / "small")
        first = [sample.key for sample, _ in first_samples(store, "train", 2)]
    finally:
        store.close()
    assert verify(small) == []
    there = load_manifest(pet_shards).splits
    counts = {name: split.num_samples for name, split in load_manifest(small).splits.items()}
    assert counts == {name: min(count, there[name].num_samples) for name, count in SMALL_SAMPLES.items()}
    again = open_store(str(small))
    try:
        assert [sample.key for sample, _ in first_samples(again, "train", 2)] == first
    finally:
        again.close()


def test_a_member_that_is_not_there_stays_away() -> None:
    """A sample without facts, of shards that were packed elsewhere."""
    there = Member(1536, 10, 7)
    moved = _moved(Sample("a", there, Member(2560, 4, 1), NO_MEMBER), -1024)
    assert moved == Sample("a", Member(512, 10, 7), Member(1536, 4, 1), NO_MEMBER)


def test_a_split_without_samples_is_named(pet_shards: Path) -> None:
    store = open_store(str(pet_shards))
    try:
        with pytest.raises(ValueError, match="split val has no samples"):
            first_samples(store, "val", 0)
    finally:
        store.close()
