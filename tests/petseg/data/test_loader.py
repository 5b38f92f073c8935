"""Batches as they are decoded ahead: what lost samples and fillers weigh, and what happens to work nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from petseg.data.decode import Pixels
from petseg.data.loader import PREFETCH_BATCHES, load_batches, whole_batches
from petseg.data.plan import Ids, MicroBatch
from petseg.data.tars import Loaded, Lost, Whole

Wait = Callable[[Callable[[], object]], None]


class Numbers:
    """Samples filled with their position, whose hash is 100 more; some cannot be read."""

    size_px = (2, 3)

    def __init__(self, *lost: int) -> None:
        self.lost, self.sizes = lost, list[int]()

    def load(self, ids: Ids, image: Pixels, labels: Pixels) -> Loaded:
        self.sizes.append(len(ids))
        loaded = Loaded(np.zeros(len(ids), np.uint64))
        for i, position in enumerate(ids.tolist()):
            image[i], labels[i] = position, position
            if position in self.lost:
                loaded.lost.append(lost_at(position))
            else:
                loaded.hashes[i] = 100 + position
        return loaded

    def whole(self, position: int) -> Whole | Lost:
        if position in self.lost:
            return lost_at(position)
        return Whole(np.full((2, 3, 3), position, np.uint8), np.full((2, 3), position, np.uint8), 100 + position)


def lost_at(position: int) -> Lost:
    return Lost("train-000000.tar", str(position), 512, "altered")


def plan_of(*batches: list[int]) -> list[MicroBatch]:
    return [MicroBatch(np.array(ids), step, len(ids), last=True) for step, ids in enumerate(batches)]


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_samples_keep_their_places_and_lost_ones_weigh_nothing(threads: int) -> None:
    plan = plan_of([5, 3, 8, 1, 9], [2, 7])
    first, second = load_batches(Numbers(3, 9, 2), plan, threads)
    assert (first.plan, second.plan) == (plan[0], plan[1])
    assert (first.image.shape, first.labels.shape) == ((5, 2, 3, 3), (5, 2, 3))
    assert first.image.dtype == first.labels.dtype == torch.uint8
    assert first.image[:, 0, 0, 0].tolist() == first.labels[:, 1, 2].tolist() == [5, 3, 8, 1, 9]
    assert first.hashes.tolist() == [105, 0, 108, 101, 0]
    assert first.weight.tolist() == [1, 0, 1, 1, 0]
    assert first.weight.dtype == torch.float32
    assert first.lost == [lost_at(3), lost_at(9)]
    assert (second.weight.tolist(), second.lost) == ([0, 1], [lost_at(2)])
    assert (first.rows, second.rows) == (None, None)


@pytest.mark.parametrize(("threads", "runs"), [(0, [7]), (1, [7]), (3, [2, 2, 3]), (9, [1] * 7)])
def test_threads_share_a_batch_in_equal_runs(threads: int, runs: list[int]) -> None:
    reader = Numbers()
    list(load_batches(reader, plan_of(list(range(7))), threads))
    assert sorted(reader.sizes) == runs


@pytest.mark.parametrize("threads", [0, 2])
def test_a_picture_that_is_lost_is_a_black_pixel_that_weighs_nothing(threads: int) -> None:
    batches = list(whole_batches(Numbers(4), plan_of([6, 4], [5]), threads))
    assert [batch.plan.ids.tolist() for batch in batches] == [[6], [4], [5]]
    assert {(b.plan.step, b.plan.step_samples, b.plan.last, b.plan.filler) for b in batches} == {(0, 1, True, False)}
    assert [batch.weight.tolist() for batch in batches] == [[1], [0], [1]]
    assert [batch.hashes.tolist() for batch in batches] == [[106], [0], [105]]
    assert [batch.lost for batch in batches] == [[], [lost_at(4)], []]
    assert batches[1].image.tolist() == [[[[0, 0, 0]]]]
    assert batches[1].labels.tolist() == [[[0]]]
    assert batches[2].image.unique().tolist() == batches[2].labels.unique().tolist() == [5]


def test_a_whole_picture_is_in_memory_of_its_own() -> None:
    """That of a cache is its file's, which nobody may write to."""
    kept = Whole(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8), 1)
    kept.image.flags.writeable = kept.labels.flags.writeable = False
    reader: Any = Numbers()
    reader.whole = lambda position: kept
    (batch,) = whole_batches(reader, plan_of([0]), threads=0)
    batch.image.fill_(9)
    batch.labels.fill_(9)
    assert not kept.image.any()
    assert not kept.labels.any()


class Gated(Numbers):
    """Its first sample is read at once, and each other one only once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun = threading.Event(), list[int]()

    def load(self, ids: Ids, image: Pixels, labels: Pixels) -> Loaded:
        self.await_gate(int(ids[0]))
        return super().load(ids, image, labels)

    def whole(self, position: int) -> Whole | Lost:
        self.await_gate(position)
        return super().whole(position)

    def await_gate(self, position: int) -> None:
        self.begun.append(position)
        if position:
            assert self.gate.wait(60)


@pytest.mark.parametrize("load", [load_batches, whole_batches])
def test_batches_that_nobody_takes_are_not_read(
    load: Callable[..., Any], wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a run is interrupted: what a thread has begun is finished, and no more."""
    reader, shutdown = Gated(), ThreadPoolExecutor.shutdown

    def opening(pool: ThreadPoolExecutor, *args: Any, **options: Any) -> None:
        reader.gate.set()
        shutdown(pool, *args, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", opening)
    batches = load(reader, plan_of(*[[i] for i in range(PREFETCH_BATCHES + 5)]), 1)
    next(batches)
    wait_for(lambda: reader.begun == [0, 1])
    batches.close()
    assert reader.begun == [0, 1]


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("load", [load_batches, whole_batches])
def test_an_error_of_the_reader_reaches_whoever_takes_the_batch(load: Callable[..., Any], threads: int) -> None:
    def full(*_: object) -> Loaded:
        raise OSError("no room for the shard")

    reader: Any = Numbers()
    reader.load = reader.whole = full
    with pytest.raises(OSError, match=r"^no room for the shard$"):
        next(load(reader, plan_of([0], [1]), threads))
