"""The lines of a run without a terminal: where it is, and how long the rest takes."""

from __future__ import annotations

import logging

import pytest

from petseg.training import progress_bar
from petseg.training.progress_bar import LOG_EVERY_S, TrainProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time now, as the only element."""
    now = [1000.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_told_by_the_steps_since_the_start(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """The run was resumed after 40 of its 100 steps, and has done 20 in 40 s: 40 more take 80 s."""
    caplog.set_level(logging.INFO)
    bar = TrainProgress(steps_per_epoch=10, total_steps=100, done_steps=40, enabled=True)
    clock[0] += max(40.0, LOG_EVERY_S)
    per_step = max(40.0, LOG_EVERY_S) / 20
    bar.update(60, 100, loss=0.5, images_per_s=8.0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("epoch 6/10 step 60/100 loss 0.5000 8.0 images/s, ")
    assert line.endswith(f"{progress_bar.duration(40 * per_step)} left")
    bar.update(61, 100, loss=0.5, images_per_s=8.0)  # too soon
    clock[0] += LOG_EVERY_S
    bar.update(80, 80, loss=0.5, images_per_s=8.0)  # a budget of minutes has ended the run here
    assert [record.getMessage().partition(" loss")[0] for record in caplog.records[1:]] == ["epoch 8/8 step 80/80"]


@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (10, 1), (11, 2), (100, 10)])
def test_the_last_step_of_an_epoch_belongs_to_it(
    clock: list[float], caplog: pytest.LogCaptureFixture, step: int, epoch: int
) -> None:
    caplog.set_level(logging.INFO)
    bar = TrainProgress(steps_per_epoch=10, total_steps=100, done_steps=0, enabled=True)
    clock[0] += LOG_EVERY_S
    bar.update(step, 100, loss=0.5, images_per_s=8.0)
    assert f"epoch {epoch}/10 step {step}/100" in caplog.text


def test_other_processes_say_nothing(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bar = TrainProgress(steps_per_epoch=10, total_steps=100, done_steps=0, enabled=False)
    clock[0] += 10 * LOG_EVERY_S
    bar.update(50, 100, loss=0.5, images_per_s=8.0)
    assert not caplog.records
