"""How long a run will be: by hand, as a real run settles it, and in the words of petseg.estimate."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from petseg.config import RunConfig
from petseg.config.training import TrainConfig
from petseg.data.store import open_store
from petseg.run.length import EpochTime, epochs_of
from petseg.run.progress import start_progress
from petseg.run.schedule import fit_budget
from petseg.training.needs import _run_time

TIME = EpochTime(train_s=50.0, beside_s=10.0)


@pytest.mark.parametrize(
    ("train", "epochs", "seconds"),
    [
        (TrainConfig(epochs=3), 3, 180),
        (TrainConfig(budget_steps=250), 2.5, 2.5 * 50 + 3 * 10),
        (TrainConfig(budget_min=3.0), 3, 180),
        (TrainConfig(budget_min=55 / 60), 1, 60),
        (TrainConfig(budget_min=25 / 60), 0.5, 35),
    ],
)
def test_epochs_by_hand(train: TrainConfig, epochs: float, seconds: float) -> None:
    assert epochs_of(train, 100, TIME) == pytest.approx(epochs)
    assert TIME.run_s(epochs) == seconds


@pytest.mark.parametrize(("steps", "minutes"), [(5, 0.0), (0, 2.0), (0, 0.5), (0, 0.0)])
def test_a_run_fixes_the_estimated_number_of_steps(steps: int, minutes: float, tiny: Callable[..., RunConfig]) -> None:
    config = tiny(train__budget_steps=steps, train__budget_min=minutes)
    store = open_store(config.data.shards, config.data.cache_dir, config.data.cache_gb)
    run = start_progress(config, store.manifest.splits["train"].num_samples)
    fit_budget(config, run, 1, TIME.train_s / run.steps_per_epoch)
    if run.total_steps >= run.steps_per_epoch:  # the first epoch was a whole one, and has had its validation
        fit_budget(config, run, run.steps_per_epoch, TIME.train_s + TIME.beside_s)
    assert run.total_steps == int(epochs_of(config.train, run.steps_per_epoch, TIME) * run.steps_per_epoch)


@pytest.mark.parametrize(
    ("train", "text"),
    [
        (TrainConfig(epochs=7), "7 min for 7 epochs"),
        (TrainConfig(budget_steps=250), "3 min for 250 steps (2.5 epochs)"),
        (TrainConfig(budget_min=2.5), "about 250 steps (2.5 epochs) in 2.5 min"),
    ],
)
def test_the_estimate_counts_as_the_config_does(train: TrainConfig, text: str) -> None:
    assert _run_time(train, 100, TIME) == text


def test_the_estimate_names_a_missing_train_split() -> None:
    assert _run_time(TrainConfig(), 0, EpochTime(0.0, 0.0)) == "the shard set has no split train"
