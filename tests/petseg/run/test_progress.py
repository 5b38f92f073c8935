"""The progress of a run: what ranks resume from, and which epoch is the best."""

from __future__ import annotations

import json

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


def test_steps_of_a_run_whose_last_epoch_is_shorter_by_hand() -> None:
    progress = Progress(5, 13)
    assert progress.epochs == 3
    assert [progress.first_step(epoch) for epoch in (1, 2, 3)] == [0, 5, 10]
    assert [progress.steps_of(epoch) for epoch in (1, 2, 3)] == [5, 5, 3]
    assert [Progress(5, 13, epoch).done_steps for epoch in range(4)] == [0, 5, 10, 13]
    assert Progress(5, 13, 1, PartialEpoch(steps=3)).done_steps == 8
    assert (Progress(5, 15).epochs, Progress(5, 16).epochs) == (3, 4)


def test_the_fields_of_a_state_are_those_of_earlier_versions() -> None:
    progress = Progress(4, 10, epoch=1, partial=TWO_RANKS, best=Best(4, 1, 0.5), compiled=True)
    state = json.loads(json.dumps(progress.to_state()))
    assert state == {
        "epoch": 1,
        "total_steps": 10,
        "so_far": {
            "steps": 3,
            "sums": [[4.0, 1.0, 2.0, 1.5], [3.0, 0.5, 1.0, 0.25]],
            "count": {"samples": 7, "xor": 99, "lost": 0, "lost_xor": 0, "unnamed": 0},
            "seconds": 2.5,
            "waited_s": 0.0,
        },
        "best": {"step": 4, "epoch": 1, "val/dice": 0.5},
        "compiled": True,
    }
    restored = Progress(4, 10)
    restored.from_state(state, 0.0)
    assert restored == progress
    del state["compiled"]
    restored.from_state(state, 0.0)
    assert restored.compiled is None


@pytest.mark.parametrize("name", ["epoch", "so_far", "best"])
def test_a_state_that_lacks_something_is_refused(name: str) -> None:
    state = Progress(4, 10).to_state()
    del state[name]
    with pytest.raises(KeyError):
        Progress(4, 10).from_state(state, 0.0)


def test_the_first_measured_epoch_is_the_best_even_at_a_dice_of_zero() -> None:
    progress = Progress(4, 10)
    progress.finish_epoch(1, 4, 0.0)
    assert progress.best == Best(4, 1, 0.0)
    progress.finish_epoch(2, 8, 0.125)
    assert progress.best == Best(8, 2, 0.125)
