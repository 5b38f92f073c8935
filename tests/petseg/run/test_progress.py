"""The progress of a run: what ranks resume from, and which epoch is the best."""

from __future__ import annotations

import pytest

from petseg.data.ledger import Count
from petseg.run.progress import Best, PartialEpoch, Progress

TWO_RANKS = PartialEpoch(steps=3, sums=((4.0, 1.0, 2.0, 1.5), (3.0, 0.5, 1.0, 0.25)), count=Count(7, 99), seconds=2.5)


def test_a_rank_resumes_from_its_own_sums() -> None:
    assert [TWO_RANKS.sums_of(rank, 2) for rank in (0, 1)] == list(TWO_RANKS.sums)


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_sums_of_another_number_of_ranks_count_once(world_size: int) -> None:
    first, *others = (TWO_RANKS.sums_of(rank, world_size) for rank in range(world_size))
    assert first == (7.0, 1.5, 3.0, 1.75)
    assert others == [(0.0,) * 4] * (world_size - 1)


def test_an_epoch_that_was_not_interrupted_starts_from_nothing() -> None:
    assert PartialEpoch().sums_of(0, 1) == PartialEpoch().sums_of(1, 2) == (0.0,) * 4


def test_the_first_of_equally_good_epochs_is_the_best() -> None:
    progress = Progress(steps_per_epoch=4, total_steps=10)
    for epoch, dice in ((1, 0.5), (2, 0.5), (3, 0.25)):
        progress.finish_epoch(epoch, progress.first_step(epoch) + progress.steps_of(epoch), dice)
    assert progress.best == Best(step=4, epoch=1, dice=0.5)
    assert (progress.epochs, progress.done_steps) == (3, 10)


@pytest.mark.parametrize(("budget_min", "total_steps"), [(0.0, 12), (2.0, 10)])
def test_a_state_is_restored_with_the_steps_of_a_budget_of_minutes(budget_min: float, total_steps: int) -> None:
    saved = Progress(4, 10, epoch=1, partial=TWO_RANKS, best=Best(4, 1, 0.5))
    restored = Progress(4, 12)
    restored.from_state(saved.to_state(), budget_min)
    assert restored == Progress(4, total_steps, epoch=1, partial=TWO_RANKS, best=Best(4, 1, 0.5))
