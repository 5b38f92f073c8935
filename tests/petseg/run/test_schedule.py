"""Updates, averages, learning rates, sizes and budgets of a run of 13 steps in epochs of 5, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run.progress import Progress, start_progress
from petseg.run.schedule import (
    Update,
    decay_at,
    fit_budget,
    image_size_px_at,
    learning_rate_at,
    relative_area_of,
    update_at,
)

SAMPLES = 36  # four batches of 8, and one of 4


def config_of(**changes: Any) -> RunConfig:
    values = {"train.batch_size": 8} | {name.replace("__", "."): value for name, value in changes.items()}
    return with_values(RunConfig(), values)


GROWING = config_of(data__image_size_px=128, train__start_size_px=64, train__full_size_from=0.5, train__budget_min=2.0)


def updates(config: RunConfig, epoch: int) -> list[tuple[int, int, int]]:
    progress = Progress(5, 13)
    found = [update_at(config, progress, epoch, step, SAMPLES) for step in range(progress.steps_of(epoch))]
    return [(update.first, update.end, update.samples) for update in found]


def test_a_run_has_the_steps_of_its_budget_or_of_its_epochs() -> None:
    assert start_progress(config_of(train__epochs=3), SAMPLES) == Progress(5, 15)
    assert start_progress(config_of(train__epochs=3, train__budget_steps=13), SAMPLES) == Progress(5, 13)


def test_each_step_makes_one_update() -> None:
    each = [(0, 1, 8), (1, 2, 8), (2, 3, 8), (3, 4, 8), (4, 5, 4)]
    assert [updates(config_of(), epoch) for epoch in (1, 2, 3)] == [each, each, each[:3]]


def test_late_updates_have_several_batches_and_end_with_their_epoch() -> None:
    """A run has 13 steps; those from 6.5 on are late: numbers 2 to 4 of the second epoch, and all of the third."""
    config = config_of(train__late_batches=2, train__late_batches_from=0.5)
    assert updates(config, 1) == updates(config_of(), 1)
    assert updates(config, 2) == [(0, 1, 8), (1, 2, 8), (2, 4, 16), (2, 4, 16), (4, 5, 4)]
    assert updates(config, 3) == [(0, 2, 16), (0, 2, 16), (2, 3, 8)]
    three = config_of(train__late_batches=3, train__late_batches_from=0.5)
    assert updates(three, 2) == [(0, 1, 8), (1, 2, 8), (2, 5, 20), (2, 5, 20), (2, 5, 20)]
    assert updates(config_of(train__late_batches=5, train__late_batches_from=0.0), 2) == [(0, 5, 36)] * 5


@pytest.mark.parametrize(
    ("first", "end", "every", "ends"),
    [(0, 1, 1, True), (0, 1, 2, False), (1, 2, 2, True), (2, 4, 3, True), (3, 5, 3, False), (3, 6, 3, True)],
)
def test_an_interval_ends_with_the_update_that_reaches_a_multiple(first: int, end: int, every: int, ends: bool) -> None:
    assert Update(first, end, 8).ends_interval(every) is ends


def test_the_decay_of_a_running_average_warms_up_over_the_whole_run() -> None:
    progress = Progress(5, 13)
    assert decay_at(config_of(train__ema_decay=0.999), progress, 1, Update(0, 1, 8)) == 0.1
    assert decay_at(config_of(train__ema_decay=0.999), progress, 2, Update(2, 4, 16)) == 0.5  # after step 8: 9 / 18
    assert decay_at(config_of(train__ema_decay=0.3), progress, 2, Update(2, 4, 16)) == 0.3


@pytest.mark.parametrize(
    ("epoch", "first", "end", "decay"),
    [(1, 0, 1, 0), (2, 1, 2, 0), (2, 2, 3, 0), (2, 3, 4, 1 / 2), (2, 4, 5, 2 / 3), (2, 2, 4, 0), (3, 0, 2, 3 / 5)],
)
def test_the_mean_of_the_weights_counts_steps_from_its_start(epoch: int, first: int, end: int, decay: float) -> None:
    """From step 7 of 13 on, which is number 2 of the second epoch."""
    config = config_of(train__swa_from=0.5)
    assert decay_at(config, Progress(5, 13), epoch, Update(first, end, 8)) == pytest.approx(decay)


def test_the_learning_rate_follows_the_steps_of_the_whole_run() -> None:
    progress = Progress(5, 13)
    warm = config_of(optim__lr=0.5, optim__schedule="constant", optim__warmup=0.5)  # 7 of 13 steps
    rates = [learning_rate_at(warm, progress, 1, 0), *(learning_rate_at(warm, progress, 2, step) for step in (0, 1, 2))]
    assert rates == pytest.approx([0.5 / 7, 0.5 * 6 / 7, 0.5, 0.5])
    poly = config_of(optim__lr=0.5, optim__schedule="poly", optim__warmup=0.0)
    assert learning_rate_at(poly, progress, 3, 2) == pytest.approx(0.5 * (1 / 13) ** 0.9)


def test_pictures_grow_over_the_steps_of_the_whole_run() -> None:
    progress = Progress(5, 16)
    sizes = [[image_size_px_at(GROWING, progress, epoch, step)[0] for step in range(5)] for epoch in (1, 2, 3)]
    assert sizes == [[64, 64, 64, 64, 96], [96, 96, 96, 128, 128], [128] * 5]
    areas = [relative_area_of(GROWING, progress, epoch) for epoch in (1, 2, 3, 4)]
    assert areas == pytest.approx([(4 * 0.25 + 0.5625) / 5, (3 * 0.5625 + 2) / 5, 1, 1])


@pytest.mark.parametrize(
    ("minutes", "steps", "seconds", "validation_s", "total"),
    [
        (0.0, 5, 10.0, 5.0, 16),  # no budget of minutes
        (2.0, 5, 10.0, 5.0, 40),  # 2 s a step, and a fifth of a validation
        (2.0, 5, 10.0, 0.0, 60),
        (2.0, 5, 35.0, 0.0, 17),  # 17.14 steps
        (2.0, 5, 300.0, 0.0, 5),  # what is done already
    ],
)
def test_a_budget_of_minutes_buys_steps(
    minutes: float, steps: int, seconds: float, validation_s: float, total: int
) -> None:
    progress = Progress(5, 16)
    fit_budget(config_of(train__budget_min=minutes), progress, steps, seconds, validation_s)
    assert progress.total_steps == total


def test_small_first_pictures_do_not_promise_a_fast_run() -> None:
    """5 steps at 0.3125 of the area in 5 s: 3.2 s at full size, 2.25 s in the mean, and 1 s for validation."""
    progress = Progress(5, 16)
    fit_budget(GROWING, progress, 5, 5.0, 5.0)
    assert progress.total_steps == int(120 / 3.25)
    progress = Progress(5, 16)
    fit_budget(GROWING, progress, 5, 5.0)
    assert progress.total_steps == int(120 / 2.25)
