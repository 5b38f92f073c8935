"""How long a run will be, by what its config counts in (epochs, steps, minutes), as petseg.run settles it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from petseg.config import TrainConfig


@dataclass(frozen=True)
class EpochTime:
    """Seconds of a whole epoch: of its steps, and of the validation and the saving after them."""

    train_s: float
    beside_s: float

    def run_s(self, epochs: float) -> float:
        """Of so many epochs; a last one that ends early is validated and saved like the others."""
        return epochs * self.train_s + math.ceil(epochs) * self.beside_s


def epochs_of(train: TrainConfig, steps_per_epoch: int, time: EpochTime) -> float:
    """Epochs of the whole run; a fraction where the budget ends within the last one.

    Minutes are those of training and validation; within the first epoch, of training alone, as its pace is known then.
    """
    if train.budget_steps:
        return train.budget_steps / steps_per_epoch
    if not train.budget_min:
        return float(train.epochs)
    budget_s = 60 * train.budget_min
    whole = budget_s / (time.train_s + time.beside_s)
    return whole if whole >= 1 else min(1.0, budget_s / time.train_s)
