import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from petseg.data.plan import epoch_order, eval_plan, steps_per_epoch, train_plan

sizes = st.integers(1, 200)
batch_sizes = st.integers(1, 40)
worlds = st.integers(1, 9)


@given(sizes, st.integers(0, 2**31 - 1), st.integers(1, 1000))
def test_an_order_has_each_sample_once_and_depends_on_seed_and_epoch_alone(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed, epoch))


def test_orders_differ_by_epoch_and_by_seed() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch_order(10, seed=7, epoch=3).tolist() == [8, 4, 5, 3, 6, 0, 9, 7, 1, 2]


@given(sizes, batch_sizes, st.integers(1, 4), worlds, st.integers(0, 99))
def test_ranks_share_an_epoch_without_gap_or_repeat(n: int, batch: int, accumulate: int, world: int, seed: int) -> None:
    order = epoch_order(n, seed, epoch=1)
    plans = [list(train_plan(order, batch, accumulate, rank, world)) for rank in range(world)]
    seen = [int(i) for plan in plans for part in plan if part.weight for i in part.ids]
    assert sorted(seen) == list(range(n))


@given(sizes, batch_sizes, st.integers(1, 4), worlds)
def test_all_ranks_take_the_same_passes_and_steps(n: int, batch: int, accumulate: int, world: int) -> None:
    order = epoch_order(n, seed=0, epoch=1)
    shapes = [
        [(part.step, part.last, part.step_samples) for part in train_plan(order, batch, accumulate, rank, world)]
        for rank in range(world)
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert sum(last for _, last, _ in shapes[0]) == steps_per_epoch(n, batch)
    assert all(len(part.ids) for part in train_plan(order, batch, accumulate, world - 1, world))


@given(sizes, batch_sizes, worlds)
def test_a_step_has_the_same_samples_on_any_number_of_ranks(n: int, batch: int, world: int) -> None:
    order = epoch_order(n, seed=0, epoch=1)
    for step in range(steps_per_epoch(n, batch)):
        together: list[int] = []
        for rank in range(world):
            parts = [p for p in train_plan(order, batch, 1, rank, world) if p.step == step and p.weight]
            together += [int(i) for p in parts for i in p.ids]
        assert sorted(together) == sorted(order[step * batch : (step + 1) * batch])


@given(sizes, batch_sizes, worlds, st.integers(0, 50))
def test_resuming_is_the_suffix(n: int, batch: int, world: int, first: int) -> None:
    order = epoch_order(n, seed=0, epoch=1)
    whole = [part for part in train_plan(order, batch, 1, 0, world) if part.step >= first]
    resumed = list(train_plan(order, batch, 1, 0, world, first_step=first))
    assert [p.ids.tolist() for p in whole] == [p.ids.tolist() for p in resumed]


@given(sizes, batch_sizes, worlds)
def test_evaluation_sees_each_sample_once_on_any_number_of_ranks(n: int, batch: int, world: int) -> None:
    seen = [int(i) for rank in range(world) for part in eval_plan(n, batch, rank, world) for i in part.ids]
    assert sorted(seen) == list(range(n))
