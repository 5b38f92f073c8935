"""Real pictures with the real data set's oddities."""

from collections import Counter
from pathlib import Path

import pytest

from shards.command import Failure
from shards.index import load_index
from shards.manifest import load_manifest
from shards.pack import Outcome, PackConfig, pack
from shards.packing.pictures import CORRUPT, SUSPECT, read_picture
from shards.sources.pets.oxford import read_folder
from shards.verify import verify


@pytest.fixture(scope="module")
def outcome(pets_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("real") / "shards"
    return pack(PackConfig(out=out, source=pets_root, workers=2)), out


def test_every_listed_pair_is_packed(outcome: tuple[Outcome, Path]) -> None:
    manifest = outcome[0].manifest
    assert manifest.source.name == "oxford-iiit-pet"
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 707,
        "val": 79,
        "test": 781,
    }
    assert verify(outcome[1], num_workers=2) == []


def test_oddities(outcome: tuple[Outcome, Path]) -> None:
    assert outcome[0].manifest.packer["oddities"] == {
        "not_jpeg": 1,  # the GIF among the odd files is in no list
        "not_rgb": 1,
        "invalid_exif": 2,
        "all_background": 7,
        "unlisted_picture": 4,
        "unlisted_trimap": 4,
        "apple_double": 6,
        "mat_file": 1,
    }
    names = outcome[0].oddities
    assert names["not_jpeg"] == names["not_rgb"] == ["Abyssinian_5"]
    assert sorted(names["invalid_exif"]) == ["Abyssinian_75", "Bengal_201"]
    assert "Abyssinian_34.jpg" in names["unlisted_picture"]


def test_bytes_are_the_originals_but_for_the_odd_ones(outcome: tuple[Outcome, Path], pets_root: Path) -> None:
    pictures = {pet.key: pet.picture for pet in read_folder(pets_root).samples}
    touched = []
    for shard in load_manifest(outcome[1]).shards:
        data = (outcome[1] / shard.name).read_bytes()
        for sample in load_index(outcome[1], shard.name):
            member = sample.jpg
            if data[member.offset : member.offset + member.num_bytes] != pictures[sample.key].read_bytes():
                touched.append(sample.key)
    assert sorted(touched) == ["Abyssinian_5", "Abyssinian_75", "Bengal_201"]


def test_a_lost_sector_is_always_noticed(pets_root: Path, tmp_path: Path) -> None:
    """The decoder is silent about one in eight."""
    outcomes = Counter[str]()
    for number, pet in enumerate(read_folder(pets_root).samples[::26]):
        data = bytearray(pet.picture.read_bytes())
        start = number * 7919 % (len(data) // 512) * 512
        data[start : start + 512] = bytes(512)
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            outcomes.update(set(read_picture(tmp_path / "a.jpg").oddities) & {CORRUPT, SUSPECT} or {"unnoticed"})
        except Failure:
            outcomes["refused"] += 1
    assert outcomes["unnoticed"] == 0
    assert min(outcomes[CORRUPT], outcomes[SUSPECT]) > 0
