"""Which samples a process reads, and how: stand-ins note what a split is asked for."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.plan import EpochOrder
from petseg.data.whole.crops import Crops
from petseg.run.batches import batches_at, epoch_order, eval_batches, take_step, train_batches
from petseg.run.parts import Parts

SIZES = [4, 3, 3]


class Split:
    """Ten samples in three shards."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.tars = SimpleNamespace(
            shard_sizes=SIZES, shards_of=lambda first, end: ("shards of", first, end),
            prefetch=lambda shards: self.asked.update(prefetch=shards),
        )  # fmt: skip

    def __len__(self) -> int:
        return sum(SIZES)

    def prefetched(self, plan: Any, order: EpochOrder, batch_size: int) -> list[Any]:
        self.asked.update(order=order, batch_size=batch_size)
        return list(plan)

    def batches(self, plan: Any, pin: bool) -> list[Any]:
        self.asked["pin"] = pin
        return [SimpleNamespace(plan=one) for one in plan]

    def crops(self, plan: Any, crops: Crops, pin: bool) -> list[Any]:
        self.asked.update(crops=crops)
        return self.batches(plan, pin)


def parts_of(split: Split, rank: int = 0, world_size: int = 1, device: str = "cpu", **values: Any) -> Parts:
    config = {"train.batch_size": 4, "train.seed": 7, "data.shuffle_window_shards": 2} | values
    parts = SimpleNamespace(
        config=with_values(RunConfig(), config), splits={"train": split, "val": split}, rank=rank,
        world_size=world_size, device=torch.device(device), eval_batch_size=2,
    )  # fmt: skip
    return cast(Parts, parts)


def ids_of(batches: Any) -> list[list[int]]:
    return [batch.plan.ids.tolist() for batch in batches]


def test_an_epochs_order_is_of_its_seed_window_and_number() -> None:
    order = epoch_order(parts_of(Split()), 3)
    assert order.ids(0, 10).tolist() == EpochOrder(SIZES, 2, 7, 3).ids(0, 10).tolist()
    assert order.ids(0, 10).tolist() != epoch_order(parts_of(Split()), 4).ids(0, 10).tolist()


@pytest.mark.parametrize(("device", "pin"), [("cpu", False), ("cuda", True)])
def test_the_ranks_share_each_batch_of_an_epoch(device: str, pin: bool) -> None:
    order = EpochOrder(SIZES, 2, 7, 2).ids(0, 10).tolist()
    splits = [Split(), Split()]
    found = [ids_of(train_batches(parts_of(one, rank, 2, device), 2)) for rank, one in enumerate(splits)]
    assert found == [[order[0:4:2], order[4:8:2], order[8::2]], [order[1:4:2], order[5:8:2], order[9::2]]]
    assert [one.asked["pin"] for one in splits] == [pin, pin]
    assert splits[1].asked["batch_size"] == 4
    assert ids_of(train_batches(parts_of(Split(), 1, 2), 2, first_step=1)) == found[1][1:]


def test_a_step_is_all_its_micro_batches() -> None:
    split = Split()
    batches = iter(train_batches(parts_of(split, **{"train.accumulation_steps": 2}), 1))
    order = EpochOrder(SIZES, 2, 7, 1).ids(0, 10).tolist()
    steps = [ids_of(take_step(batches)) for _ in range(3)]
    assert [list(chain(*step)) for step in steps] == [order[:4], order[4:8], order[8:]]
    assert [len(step) for step in steps] == [2, 2, 2]
    with pytest.raises(StopIteration):
        next(batches)


def test_crops_are_those_of_the_seed_and_the_epoch() -> None:
    split = Split()
    values = {"data.fit": "crop", "data.rare_crops": 0.25, "data.image_size_px": "64x96"}
    train_batches(parts_of(split, **values), 5)
    assert split.asked["crops"] == Crops((64, 96), 7, 5, 0.25)


def test_each_rank_evaluates_its_own_samples_and_fetches_their_shards_alone() -> None:
    splits = [Split() for _ in range(3)]
    found = [ids_of(eval_batches(parts_of(one, rank, 3), "val")) for rank, one in enumerate(splits)]
    assert [list(chain(*one)) for one in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert max(len(batch) for one in found for batch in one) == 2
    assert [one.asked["prefetch"] for one in splits] == [("shards of", *ends) for ends in ((0, 3), (3, 6), (6, 10))]


def test_single_samples_are_read_in_the_order_that_is_asked_for() -> None:
    split = Split()
    batches = list(batches_at(parts_of(split, device="cuda"), "val", [5, 0, 5]))
    assert ids_of(batches) == [[5], [0], [5]]
    assert {(one.plan.step, one.plan.step_samples, one.plan.last) for one in batches} == {(0, 1, True)}
    assert batches[0].plan.ids.dtype == np.int64
    assert split.asked["pin"]
