"""How many classes a batch has, by the plan: worked out by hand, and counted on sorted and on mixed shards."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data import mixing
from petseg.data.mixing import Mixing, classes_of_keys, expected_classes, measure_mixing, mixing_of, some_batches
from petseg.data.plan import EpochOrder
from petseg.data.store import LocalStore, open_store
from petseg.data.tars import TarReader
from petseg.run.parts import Parts
from petseg.training.loop import train, warn_of_poor_mixing
from shards.index import Member, Sample, save_index
from shards.manifest import Manifest, Shard, Source, load_manifest, save_manifest, shard_name, split_of_keys
from tests.petseg.shard_server import serve


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


def test_a_small_last_batch_is_not_examined() -> None:
    order = EpochOrder([10], 1, 0, 1)
    assert [len(batch) for batch in some_batches(order, 4, count=32)] == [4, 4]
    assert [len(batch) for batch in some_batches(order, 16, count=32)] == [10]


def test_a_batch_larger_than_the_set_can_have_all_classes() -> None:
    order, classes = EpochOrder([3, 3], 1, 0, 1), np.repeat(np.arange(2), 3)
    found = measure_mixing(order, classes, 100, 1)
    assert (found.seen, found.possible) == (2.0, pytest.approx(2.0))


def test_a_window_over_all_shards_mixes_best() -> None:
    order, classes = EpochOrder([32] * 8, 8, 0, 1), np.repeat(np.arange(8), 32)
    found = measure_mixing(order, classes, 8, 8)
    assert found.seen == pytest.approx(found.possible, rel=0.1)
    assert not found.is_poor


def test_the_warning_has_the_numbers() -> None:
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


def sorted_set(folder: Path, facts: Callable[[int], Any]) -> LocalStore:
    """Eight shards of 32 samples with numbers for keys; facts: what the JSON of a sample says, by its number."""
    folder.mkdir()
    shards, keys = list[Shard](), list[str]()
    for number in range(8):
        name, samples, content = shard_name("train", number), list[Sample](), io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position in range(32 * number, 32 * (number + 1)):
                members, key = {}, f"{position:05}"
                for suffix in ("jpg", "png", "json"):
                    data = json.dumps(facts(position)).encode() if suffix == "json" else b"x"
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    members[suffix] = Member(tar.offset - -(-len(data) // 512) * 512, len(data), zlib.crc32(data))
                samples.append(Sample(key, **members))
                keys.append(key)
        (folder / name).write_bytes(content.getvalue())
        sha256 = hashlib.sha256(content.getvalue()).hexdigest()
        shards.append(Shard(name, "train", 32, len(content.getvalue()), sha256, save_index(samples, folder, name)))
    trimap = {"pet": 1, "background": 2, "border": 3}
    save_manifest(Manifest(Source("drawn", "", trimap), {}, {"train": split_of_keys(keys)}, tuple(shards)), folder)
    return LocalStore(str(folder))


@pytest.mark.parametrize("field", ["breed", "class", "cls", "label"])
def test_classes_are_taken_from_the_json_of_samples(tmp_path: Path, field: str) -> None:
    """Shards of one class each, whose keys are numbers: a window of one sees one class in a batch."""
    store = sorted_set(tmp_path / "set", lambda position: {"key": str(position), field: position // 32})
    found = mixing_of(store, 1, 16, 0)
    assert found is not None
    assert found.is_poor
    assert found.seen == 1
    assert found.possible == pytest.approx(expected_classes([32] * 8, 16), rel=0.02)
    two = mixing_of(store, 2, 32, 0)
    assert two is not None
    assert two.seen == 2


def test_training_warns_of_the_order_that_its_seed_gives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = sorted_set(tmp_path / "set", lambda position: {"label": position // 16})
    found = {seed: str(mixing_of(store, 2, 8, seed)) for seed in range(4)}
    assert len(set(found.values())) > 1
    for seed, text in found.items():
        caplog.clear()
        values = {"data.shuffle_window_shards": 2, "train.batch_size": 8, "train.seed": seed}
        warn_of_poor_mixing(cast(Parts, SimpleNamespace(config=with_values(RunConfig(), values), store=store)))
        assert [record.getMessage() for record in caplog.records] == [text]


def test_mixed_shards_are_not_warned_of(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 8, 256).tolist()
    found = mixing_of(sorted_set(tmp_path / "set", lambda position: {"label": f"class {drawn[position]}"}), 1, 16, 0)
    assert found is not None
    assert not found.is_poor
    assert found.seen == pytest.approx(found.possible, rel=0.1)


@pytest.mark.parametrize(
    "facts",
    [
        lambda position: {},
        lambda position: {"label": position},  # an id
        lambda position: {"label": 3},
        lambda position: {"label": [position // 32]},
        lambda position: {"label": position // 32} if position else {},  # not in each
        lambda position: [position // 32],
    ],
)
def test_json_without_classes_gives_no_mixing(tmp_path: Path, facts: Callable[[int], Any]) -> None:
    assert mixing_of(sorted_set(tmp_path / "set", facts), 1, 16, 0) is None


@pytest.mark.parametrize("batch_size", [1, 16, 200, 4096])
def test_mixing_reads_few_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    store, read = sorted_set(tmp_path / "set", lambda position: {"cls": position // 32}), list[int]()
    monkeypatch.setattr(mixing, "JSONS", 20)
    facts = TarReader.facts
    monkeypatch.setattr(TarReader, "facts", lambda self, position: [read.append(position), facts(self, position)][1])
    assert mixing_of(store, 1, batch_size, 0) is not None
    assert 0 < len(read) <= 40


def test_mixing_does_not_fetch_a_remote_set(tmp_path: Path) -> None:
    sorted_set(tmp_path / "set", lambda position: {"cls": position // 32})
    with serve(tmp_path / "set") as server, closing(open_store(server.url, str(tmp_path / "cache"))) as store:
        assert mixing_of(store, 1, 16, 0) is None
    assert server.asked
    assert not [path for path in server.asked if path.endswith(".tar")]


def test_a_class_of_several_words_is_one_class() -> None:
    keys = ["great_pyrenees_1", "great_dane_1", "great_pyrenees_12", "great_dane_7"]
    classes = classes_of_keys(keys)
    assert classes is not None
    assert classes.tolist() == [1, 0, 1, 0]
