"""A split gives the rows of its target's tables, crops and windows of its shards from whatever source it has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.plan import EpochOrder, MicroBatch
from petseg.data.split import SplitData, open_splits
from petseg.data.store import open_store
from petseg.data.tars import TarReader
from petseg.data.whole.crops import Crops
from petseg.data.whole.whole_cache import WholeCache


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
