"""Which sample when: the order of an epoch and each rank's part of it, as pure functions (numpy only).

The order of epoch e depends on (seed, e) alone. Global batch s is a slice of that order; each rank takes every
world_size-th sample of it. So any world size sees the same global batches, all ranks take the same number of steps,
and the place to resume at is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]  # (n,) positions of samples in their split


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank."""

    ids: Ids  # (n,) never empty
    step: int  # optimizer step within the epoch
    step_samples: int  # samples of that step over all ranks and passes
    last: bool  # the step's last pass: gradients are exchanged and the optimizer steps
    weight: float = 1.0  # 0.0 where a rank has no sample of a small batch, and runs one only to keep step


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Optimizer steps that see each sample once; the last batch may be smaller and is kept."""
    return -(-num_samples // batch_size)


def epoch_order(num_samples: int, seed: int, epoch: int) -> Ids:
    """(num_samples,) permutation of one epoch, a function of (seed, epoch) alone."""
    philox = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    return np.random.Generator(philox).permutation(num_samples)


def global_batch(order: Ids, batch_size: int, step: int) -> Ids:
    """The samples of one optimizer step of the epoch, over all ranks: (<= batch_size,)."""
    return order[step * batch_size : (step + 1) * batch_size]


def rank_part(batch: Ids, rank: int, world_size: int) -> Ids:
    """A rank's samples of a global batch; the parts are disjoint, complete, and differ in size by at most one."""
    return batch[rank::world_size]


def train_plan(
    order: Ids, batch_size: int, accumulation_steps: int, rank: int, world_size: int, first_step: int = 0
) -> Iterator[MicroBatch]:
    """A rank's forward passes of one epoch from `first_step` on: as many on every rank, so that none waits for ever."""
    for step in range(first_step, steps_per_epoch(len(order), batch_size)):
        batch = global_batch(order, batch_size, step)
        largest_part = -(-len(batch) // world_size)
        passes = min(accumulation_steps, largest_part)
        for number, ids in enumerate(np.array_split(rank_part(batch, rank, world_size), passes), start=1):
            last = number == passes
            if len(ids):
                yield MicroBatch(ids, step, len(batch), last)
            else:
                yield MicroBatch(batch[:1], step, len(batch), last, weight=0.0)


def eval_plan(num_samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
    """A rank's forward passes over a split in which each sample is seen once; ranks may take different numbers."""
    ids = rank_part(np.arange(num_samples), rank, world_size)
    for step in range(steps_per_epoch(len(ids), batch_size)):
        part = global_batch(ids, batch_size, step)
        yield MicroBatch(part, step, len(part), last=True)
