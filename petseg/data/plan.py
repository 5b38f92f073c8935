"""Which sample when: the order of an epoch and each rank's share of it, as pure functions of numbers (numpy only).

The order of an epoch depends on (shard sizes, window, seed, epoch) alone: the shards are shuffled, and samples are
shuffled within windows of a few shards, so that storage which likes sequential reads sees a few shards at a time.
Global batch s is a slice of that order; each rank takes every world_size-th sample of it. So any world size sees the
same global batches, all ranks take the same number of steps, and the point to resume from is arithmetic. No permutation
of the whole set is ever held: that of a window is made when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]  # (n,) positions of samples in their split


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank."""

    ids: Ids  # (n,) never empty
    step: int  # optimizer step within the epoch
    step_samples: int  # samples of that step over all ranks and micro-batches
    last: bool  # the step's last micro-batch: gradients are exchanged and the optimizer steps
    filler: bool = False  # the rank has no sample of a small batch, and runs one of weight 0 to stay in step


@dataclass(frozen=True)
class Batching:
    """How an order is cut: into global batches, each of them by rank, and a rank's share into micro-batches."""

    batch_size: int  # samples of an optimizer step over all ranks
    accumulation_steps: int = 1
    rank: int = 0
    world_size: int = 1


class EpochOrder:
    """The order of one epoch: `ids(start, stop)` are its samples from number `start` to number `stop`.

    shard_sizes: samples of each shard, in the order of the split's positions
    window_shards: samples are shuffled among those of so many consecutive (shuffled) shards
    """

    def __init__(self, shard_sizes: Sequence[int] | Ids, window_shards: int, seed: int, epoch: int) -> None:
        assert window_shards >= 1
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._key = np.array([seed, epoch], dtype=np.uint64)
        self.shards = np.random.Generator(np.random.Philox(key=self._key)).permutation(len(sizes))  # in reading order
        self._sizes = sizes[self.shards]
        self._first_ids = (np.cumsum(sizes) - sizes)[self.shards]  # position of each shard's first sample
        self._window_shards = window_shards
        ends = np.cumsum(self._sizes)
        self._ends = ends[
            np.minimum(np.arange(window_shards, len(sizes) + window_shards, window_shards), len(sizes)) - 1
        ]
        self._permuted: dict[int, Ids] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def ids(self, start: int, stop: int) -> Ids:
        """(<= stop - start,) positions of the epoch's samples from number `start` to number `stop`, exclusive."""
        stop = min(stop, len(self))
        slices = [np.empty(0, np.int64)]
        while start < stop:
            window = self.window_at(start)
            end = int(self._ends[window])
            first = end - len(self._window(window))
            slices.append(self._window(window)[start - first : min(stop, end) - first])
            start = end
        return np.concatenate(slices)

    def window_at(self, number: int) -> int:
        """The window that holds the epoch's sample of this number."""
        return int(np.searchsorted(self._ends, number, side="right"))

    def shards_of_window(self, window: int) -> Ids:
        """The shards of a window, as indices of `shard_sizes`; none beyond the last window."""
        return self.shards[window * self._window_shards : (window + 1) * self._window_shards]

    def _window(self, window: int) -> Ids:
        """A window's samples in their order; the newest two windows are kept: a batch may reach into the next one."""
        if window not in self._permuted:
            shards = slice(window * self._window_shards, (window + 1) * self._window_shards)
            runs = zip(self._first_ids[shards], self._sizes[shards], strict=True)
            ids = np.concatenate([np.arange(first, first + size) for first, size in runs])
            # The counter's highest word sets the windows' streams 2**192 numbers apart.
            random = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, window + 1]))
            while len(self._permuted) > 1:
                del self._permuted[next(iter(self._permuted))]
            self._permuted[window] = random.permutation(ids)
        return self._permuted[window]


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Optimizer steps that see each sample once; the last batch may be smaller and is kept."""
    return -(-num_samples // batch_size)


def global_batch(order: EpochOrder, batch_size: int, step: int) -> Ids:
    """The samples of one optimizer step of the epoch, over all ranks: (<= batch_size,)."""
    return order.ids(step * batch_size, (step + 1) * batch_size)


def train_plan(order: EpochOrder, batching: Batching, first_step: int = 0) -> Iterator[MicroBatch]:
    """A rank's micro-batches of one epoch from `first_step` on: as many on every rank, so that none waits for ever."""
    for step in range(first_step, steps_per_epoch(len(order), batching.batch_size)):
        batch = global_batch(order, batching.batch_size, step)
        own = batch[batching.rank :: batching.world_size]  # disjoint, complete, and equal in size but for one sample
        micro_batches = min(batching.accumulation_steps, -(-len(batch) // batching.world_size))
        for number, ids in enumerate(np.array_split(own, micro_batches), start=1):
            filler = len(ids) == 0
            yield MicroBatch(batch[:1] if filler else ids, step, len(batch), number == micro_batches, filler)


def eval_plan(num_samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
    """A rank's batches of a split in which each sample is seen once; ranks may have different numbers of batches.

    Each rank takes one run of the split, so that it reads its shards from front to back and no shard of the others.
    """
    first, end = (num_samples * r // world_size for r in (rank, rank + 1))
    for step, start in enumerate(range(first, end, batch_size)):
        ids = np.arange(start, min(start + batch_size, end))
        yield MicroBatch(ids, step, len(ids), last=True)
