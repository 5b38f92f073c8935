"""What each step of a run is told: its learning rate, and the epoch of its augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petseg.config import RunConfig
from petseg.training import epoch as training
from petseg.training.loop import train


def test_the_schedule_goes_on_from_step_to_step_and_from_epoch_to_epoch(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of four steps on a cosine: the first at the full rate, the ninth would be at zero."""
    rates: list[float] = []
    monkeypatch.setattr(training, "set_learning_rate", lambda optimizer, rate: rates.append(rate))
    train(tiny(optim__schedule="cosine", optim__lr=0.01), tmp_path)
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


def test_each_epoch_draws_its_own_augmentation(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    augment = training.augment_batch

    def noted(config: RunConfig, ids: Any, epoch: int, *tensors: Any) -> Any:
        epochs.append(epoch)
        return augment(config, ids, epoch, *tensors)

    monkeypatch.setattr(training, "augment_batch", noted)
    train(tiny(augment__policy="strong"), tmp_path)
    assert epochs == [1] * 4 + [2] * 4
