"""A split gives the rows of its target's tables, crops and windows of its shards from whatever source it has."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data import split as split_module
from petseg.data.cache import Choice, DeviceCache, NodeCache, Room, open_node_cache
from petseg.data.plan import EpochOrder, MicroBatch
from petseg.data.split import SplitData, open_splits
from petseg.data.store import open_store
from petseg.data.tars import TarReader
from petseg.data.whole.crops import Crops
from petseg.data.whole.whole_cache import WholeCache, open_whole_cache


def plan_of(*ids: int) -> list[MicroBatch]:
    return [MicroBatch(np.array(ids), 0, len(ids), last=True)]


@pytest.fixture
def reader(pet_shards: Path) -> TarReader:
    return TarReader(open_store(str(pet_shards)), "train", 64)


def test_a_batch_has_the_rows_of_its_own_samples(reader: TarReader) -> None:
    split = SplitData(reader, reader, 1, rows=10 * np.arange(len(reader)))
    (batch,) = split.batches(plan_of(4, 0, 2))
    assert batch.rows is not None
    assert batch.rows.tolist() == [40, 0, 20]
    (batch,) = split.crops(plan_of(7, 1), Crops((32, 32), 0, 1))
    assert batch.rows is not None
    assert batch.rows.tolist() == [70, 10]
    (batch,) = SplitData(reader, reader, 1).batches(plan_of(4))
    assert batch.rows is None


class Announced(TarReader):
    """Notes which shards are announced."""

    def prefetch(self, shards: Iterable[int]) -> None:
        self.announced.append(list(shards))

    announced: list[list[int]]


def test_the_shards_of_a_window_and_of_the_next_one_are_announced_once(pet_shards: Path) -> None:
    reader = Announced(open_store(str(pet_shards)), "test", 64)
    reader.announced = []
    order = EpochOrder(reader.shard_sizes, window_shards=1, seed=0, epoch=1)
    assert len(order.shards) == 2
    first = int(reader.shard_sizes[order.shards[0]])
    plan = [MicroBatch(np.arange(1), step, 1, last=True) for step in range(len(reader))]
    passed = list(SplitData(reader, reader, 1).prefetched(iter(plan), order, batch_size=1))
    assert passed == plan
    assert reader.announced == [order.shards.tolist(), [order.shards[1]]]
    del reader.announced[:]
    list(SplitData(reader, reader, 1).prefetched(plan[first - 1 : first], order, batch_size=1))
    assert reader.announced == [order.shards.tolist()]


def test_pictures_of_any_size_are_kept_by_the_node_and_not_by_the_device(pet_shards: Path, tmp_path: Path) -> None:
    values = {"data.fit": "crop", "data.image_size_px": 32, "data.cache": "device", "data.cache_dir": str(tmp_path)}
    config = with_values(RunConfig(), values)
    split = open_splits(config, open_store(str(pet_shards)), ["val"], torch.device("cpu"))["val"]
    assert isinstance(split.source, WholeCache)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """How batches are read: with which loader, how many threads, and whether into page-locked memory."""
    calls: list[tuple[str, int, bool]] = []

    def noted(name: str) -> Any:
        return lambda source, plan, threads, pin: calls.append((name, threads, pin)) or iter(())

    monkeypatch.setattr(split_module, "load_batches", noted("batches"))
    monkeypatch.setattr(split_module, "whole_batches", noted("wholes"))
    return calls


def test_threads_read_what_is_not_decoded_yet(
    pet_shards: Path, tmp_path: Path, handed: list[tuple[str, int, bool]]
) -> None:
    """Copying from a cache takes less than handing over; to look for rare classes in its pictures does not."""
    tars = {fit: TarReader(open_store(str(pet_shards)), "val", 64, fit) for fit in ("squash", "crop")}
    node = open_node_cache(tars["squash"], str(tmp_path), cache_gb=1)
    wholes = open_whole_cache(tars["crop"], str(tmp_path), cache_gb=1)
    assert node is not None
    assert wholes is not None
    crops, rare = Crops((32, 32), 0, 1), Crops((32, 32), 0, 1, rare=0.5)
    for source in (tars["squash"], node):
        SplitData(tars["squash"], source, 3).batches([], pin=source is node)
    for kept in (tars["crop"], wholes):
        split = SplitData(tars["crop"], kept, 3)
        split.batches([], pin=True)
        split.crops([], crops)
        split.crops([], rare, pin=True)
    assert handed == [
        ("batches", 3, False),
        ("batches", 0, True),
        ("wholes", 3, True),
        ("batches", 3, False),
        ("batches", 3, True),
        ("wholes", 0, True),
        ("batches", 0, False),
        ("batches", 3, True),
    ]


def test_no_shard_is_announced_where_a_cache_has_the_samples(pet_shards: Path, tmp_path: Path) -> None:
    reader = Announced(open_store(str(pet_shards)), "train", 64)
    reader.announced = []
    node = open_node_cache(reader, str(tmp_path), cache_gb=1)
    assert node is not None
    assert reader.announced == [[0, 1]]  # to be decoded
    order = EpochOrder(reader.shard_sizes, window_shards=1, seed=0, epoch=1)
    assert len(list(SplitData(reader, node, 1).prefetched(plan_of(4, 0), order, batch_size=1))) == 1
    assert reader.announced == [[0, 1]]


def test_the_keys_are_those_of_all_samples_in_their_order(reader: TarReader) -> None:
    split = SplitData(reader, reader, 1)
    assert len(split) == 27
    assert split.keys() == [reader.key(position) for position in range(27)]
    assert split.key(3) == split.keys()[3]


@pytest.mark.parametrize(
    ("fit", "cache", "kind"),
    [
        ("squash", "none", TarReader),
        ("squash", "node", NodeCache),
        ("letterbox", "device", DeviceCache),
        ("crop", "none", TarReader),
        ("crop", "node", WholeCache),
    ],
)
def test_each_split_has_the_source_that_is_chosen_for_all_together(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str, cache: str, kind: type
) -> None:
    asked: list[tuple[str, int, Room]] = []

    def noted(wanted: str, num_bytes: int, room: Room) -> Choice:
        asked.append((wanted, num_bytes, room))
        return Choice(cache, "as it was told")

    monkeypatch.setattr(split_module, "choose_cache", noted)
    values = {"data.fit": fit, "data.image_size_px": "32x64", "data.cache_dir": str(tmp_path), "data.cache_gb": 0.001}
    config = with_values(RunConfig(), values | {"data.threads": 5})
    splits = open_splits(config, open_store(str(pet_shards)), ["val", "test"], torch.device("cpu"))
    assert {name: len(split) for name, split in splits.items()} == {"val": 3, "test": 30}
    assert [type(split.source) for split in splits.values()] == [kind, kind]
    assert [split.threads for split in splits.values()] == [5, 5]
    pixels = 64 * 64 * 4 + 32 if fit == "crop" else 32 * 64 * 4 + 8  # packed at 64 px
    ((wanted, num_bytes, room),) = asked
    assert (wanted, num_bytes) == ("auto", 33 * pixels)
    assert (room.device, room.disk) == (0, 10**6)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_a_split_that_cannot_be_decoded_is_read_from_its_tars(pet_shards: Path, tmp_path: Path, fit: str) -> None:
    broken = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    (broken / open_store(str(broken)).manifest.of_split("val")[0].name).write_bytes(b"")
    values = {"data.fit": fit, "data.image_size_px": 32, "data.cache": "node", "data.cache_dir": str(tmp_path / "c")}
    split = open_splits(
        with_values(RunConfig(), values), open_store(str(broken)), ["val", "train"], torch.device("cpu")
    )
    assert split["val"].source is split["val"].tars
    assert split["train"].source is not split["train"].tars


def test_what_is_chosen_is_logged_with_its_reason(
    pet_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="petseg.data.split")
    values = {"data.fit": "crop", "data.image_size_px": 32, "data.cache": "device", "data.cache_dir": str(tmp_path)}
    open_splits(with_values(RunConfig(), values), open_store(str(pet_shards)), ["val", "train"], torch.device("cpu"))
    why = "data.cache = device, but pictures of any size are kept by the node alone"
    assert caplog.messages == [f"val, train, decoded: node (0.00 GB decoded; {why})"]
