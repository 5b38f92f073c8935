"""Laws of the data order: disjoint, complete, equal steps, the same global batches for any number of ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.data.plan import Batching, EpochOrder, MicroBatch, eval_plan, global_batch, steps_per_epoch, train_plan

shard_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)
windows = st.integers(1, 14)
batch_sizes = st.integers(1, 40)
worlds = st.integers(1, 9)
seeds = st.integers(0, 2**31 - 1)


def whole(order: EpochOrder) -> list[int]:
    return [int(i) for i in order.ids(0, len(order))]


def ids_of(parts: list[MicroBatch]) -> list[int]:
    return [int(i) for part in parts if not part.filler for i in part.ids]


@given(shard_sizes, windows, seeds, st.integers(1, 1000))
def test_an_order_has_each_sample_once_and_is_a_pure_function(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    order = EpochOrder(sizes, window, seed, epoch)
    assert len(order) == sum(sizes)
    assert sorted(whole(order)) == list(range(sum(sizes)))
    assert whole(order) == whole(EpochOrder(sizes, window, seed, epoch))


@given(shard_sizes, windows, seeds, st.lists(st.integers(0, 400), max_size=20))
def test_any_slice_is_a_slice_of_the_whole(sizes: list[int], window: int, seed: int, cuts: list[int]) -> None:
    order, all_ids = EpochOrder(sizes, window, seed, 1), whole(EpochOrder(sizes, window, seed, 1))
    for start, stop in itertools.pairwise(cuts):  # backwards and over the end, too
        assert order.ids(start, stop).tolist() == all_ids[start:stop]


@given(shard_sizes, windows, seeds)
def test_a_window_reads_a_few_shards_and_no_other(sizes: list[int], window: int, seed: int) -> None:
    order = EpochOrder(sizes, window, seed, 1)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    place, number, seen = 0, 0, []
    while len(shards := order.shards_of_window(number)):
        assert len(shards) <= window
        size = sum(sizes[s] for s in shards)
        assert order.window_at(place) == number
        assert set(shard_of[order.ids(place, place + size)]) == set(shards)
        place, number, seen = place + size, number + 1, [*seen, *shards]
    assert sorted(seen) == list(range(len(sizes)))


def test_orders_differ_by_epoch_and_by_seed() -> None:
    orders = {tuple(whole(EpochOrder([20, 20, 10], 2, seed, epoch))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_windows_of_an_epoch_are_permuted_apart() -> None:
    order = EpochOrder([50] * 4, 1, 0, 1)
    within = {tuple(order.ids(i * 50, i * 50 + 50) % 50) for i in range(4)}
    assert len(within) == 4


def test_the_order_is_the_same_on_every_machine() -> None:
    assert whole(EpochOrder([4, 3, 3], 2, seed=7, epoch=3)) == [5, 6, 4, 1, 3, 2, 0, 8, 7, 9]


@given(shard_sizes, windows, batch_sizes, st.integers(1, 4), worlds, seeds)
def test_ranks_share_an_epoch_without_gap_or_repeat(
    sizes: list[int], window: int, batch: int, accumulate: int, world: int, seed: int
) -> None:
    order = EpochOrder(sizes, window, seed, epoch=1)
    plans = [list(train_plan(order, Batching(batch, accumulate, rank, world))) for rank in range(world)]
    assert sorted(ids_of([part for plan in plans for part in plan])) == list(range(sum(sizes)))


@given(shard_sizes, windows, batch_sizes, st.integers(1, 4), worlds)
def test_all_ranks_have_the_same_micro_batches_and_steps(
    sizes: list[int], window: int, batch: int, accumulate: int, world: int
) -> None:
    order = EpochOrder(sizes, window, seed=0, epoch=1)
    shapes = [
        [
            (part.step, part.last, part.step_samples)
            for part in train_plan(order, Batching(batch, accumulate, rank, world))
        ]
        for rank in range(world)
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert sum(last for _, last, _ in shapes[0]) == steps_per_epoch(sum(sizes), batch)
    assert all(len(part.ids) for part in train_plan(order, Batching(batch, accumulate, world - 1, world)))


@given(shard_sizes, windows, batch_sizes, worlds)
def test_a_step_has_the_same_samples_on_any_number_of_ranks(
    sizes: list[int], window: int, batch: int, world: int
) -> None:
    order = EpochOrder(sizes, window, seed=0, epoch=1)
    plans = [list(train_plan(order, Batching(batch, 1, rank, world))) for rank in range(world)]
    for step in range(steps_per_epoch(sum(sizes), batch)):
        together = ids_of([part for plan in plans for part in plan if part.step == step])
        assert sorted(together) == sorted(global_batch(order, batch, step))


@given(shard_sizes, windows, batch_sizes, worlds, worlds, st.integers(0, 50))
def test_a_resumed_plan_is_the_rest_on_any_number_of_ranks(
    sizes: list[int], window: int, batch: int, world: int, other_world: int, first: int
) -> None:
    order = EpochOrder(sizes, window, seed=0, epoch=1)
    before = [p for rank in range(world) for p in train_plan(order, Batching(batch, 1, rank, world)) if p.step < first]
    after = [p for rank in range(other_world) for p in train_plan(order, Batching(batch, 1, rank, other_world), first)]
    assert all(part.step >= first for part in after)
    assert sorted(ids_of(before) + ids_of(after)) == list(range(sum(sizes)))
    suffix = [p for p in train_plan(order, Batching(batch, 1, 0, world)) if p.step >= first]
    assert ids_of(list(train_plan(order, Batching(batch, 1, 0, world), first))) == ids_of(suffix)


@given(st.integers(0, 200), batch_sizes, worlds)
def test_evaluation_sees_each_sample_once_on_any_number_of_ranks(n: int, batch: int, world: int) -> None:
    parts = [part for rank in range(world) for part in eval_plan(n, batch, rank, world)]
    assert ids_of(parts) == list(range(n))
    assert all(0 < len(part.ids) <= batch for part in parts)


@pytest.mark.parametrize("rank", [0, 511, 1023])
def test_a_hundred_million_samples_need_no_large_array(rank: int) -> None:
    order = EpochOrder(np.full(100_000, 1_000), 16, seed=0, epoch=1)
    assert len(order) == 10**8
    part = next(iter(train_plan(order, Batching(4096, 1, rank, 1024), first_step=20_000)))
    assert len(part.ids) == 4
    held = sum(array.nbytes for array in (order.shards, order._sizes, order._first_ids, order._ends))
    held += sum(ids.nbytes for ids in order._permuted.values())
    assert held < 8_000_000


def test_a_plan_by_hand() -> None:
    """Seven samples in batches of four, two at a time on either of two ranks: the last step has three."""
    order = EpochOrder([7], 1, seed=0, epoch=1)
    a, b, c, d, e, f, g = whole(order)
    plans = [list(train_plan(order, Batching(4, 2, rank, world_size=2))) for rank in (0, 1)]
    told = [
        [(part.ids.tolist(), part.step, part.step_samples, part.last, part.filler) for part in plan] for plan in plans
    ]
    assert told == [
        [([a], 0, 4, False, False), ([c], 0, 4, True, False), ([e], 1, 3, False, False), ([g], 1, 3, True, False)],
        [([b], 0, 4, False, False), ([d], 0, 4, True, False), ([f], 1, 3, False, False), ([e], 1, 3, True, True)],
    ]
    assert [steps_per_epoch(number, 4) for number in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_an_evaluation_by_hand() -> None:
    plans = [list(eval_plan(7, 2, rank, world_size=2)) for rank in (0, 1)]
    told = [[(part.ids.tolist(), part.step, part.step_samples, part.last, part.filler) for part in p] for p in plans]
    assert told == [
        [([0, 1], 0, 2, True, False), ([2], 1, 1, True, False)],
        [([3, 4], 0, 2, True, False), ([5, 6], 1, 2, True, False)],
    ]
