"""The length of a run by its epochs, steps or minutes; without torch, so that a login node can quote it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from petseg.config.training import TrainConfig


@dataclass(frozen=True)
class EpochTime:
    """Seconds of a whole epoch: those of its steps, and those of the validation and the save after them."""

    train_s: float
    beside_s: float

    def run_s(self, epochs: float) -> float:
        """Seconds of so many epochs; a last one that ends early is validated and saved like the others."""
        return epochs * self.train_s + math.ceil(epochs) * self.beside_s


def epochs_of(train: TrainConfig, steps_per_epoch: int, time: EpochTime) -> float:
    """Epochs of the whole run; a fraction if the budget ends within the last one.

    A budget of minutes is for training and validation; if it ends within the first epoch, only for training, as a run
    has not measured its validation by then.
    """
    if train.budget_steps:
        return train.budget_steps / steps_per_epoch
    if not train.budget_min:
        return float(train.epochs)
    budget_s = 60 * train.budget_min
    whole = budget_s / (time.train_s + time.beside_s)
    return whole if whole >= 1 else min(1.0, budget_s / time.train_s)
