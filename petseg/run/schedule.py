"""Each step's learning rate, picture size and update of the weights, and the steps that fit a budget of minutes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from petseg.config import RunConfig
from petseg.config.sizes import Size
from petseg.optim import learning_rate
from petseg.optim.ema import warmed_up
from petseg.run.progress import Progress
from petseg.run.resizing import relative_area, size_px


@dataclass(frozen=True)
class Update:
    """The steps of an epoch whose gradients are averaged for one update of the weights; by default each makes one."""

    first: int
    end: int  # exclusive
    samples: int  # of all its steps and ranks

    def ends_interval(self, every: int) -> bool:
        """Whether a multiple of `every` steps is done with this update, and was not before it."""
        return self.first // every < self.end // every


def update_at(config: RunConfig, progress: Progress, epoch: int, step: int, num_samples: int) -> Update:
    """The update that a step (from 0) of an epoch (from 1) is part of; an update ends with its epoch at the latest.

    Towards the end it may have several batches (train.late_batches), as in Smith et al., "Don't decay the learning
    rate, increase the batch size" (2018).
    num_samples: of the train split
    """
    train, size = config.train, config.train.batch_size
    late = math.ceil(train.late_batches_from * progress.total_steps) - progress.first_step(epoch)
    first, end = step, step + 1
    if train.late_batches > 1 and step >= late:
        first = step - (step - max(0, late)) % train.late_batches
        end = min(first + train.late_batches, progress.steps_of(epoch))
    return Update(first, end, min(end * size, num_samples) - first * size)


def decay_at(config: RunConfig, progress: Progress, epoch: int, update: Update) -> float:
    """The share that the average of the weights keeps of itself when the weights after an update are averaged in.

    With train.swa_from the average is the mean over the steps since then, and before it the weights themselves.
    """
    train, before = config.train, progress.first_step(epoch)
    if train.ema_decay:
        return warmed_up(train.ema_decay, before + update.end - 1)
    averaged = max(0, before + update.first - math.ceil(train.swa_from * progress.total_steps))
    return averaged / (averaged + update.end - update.first)


def learning_rate_at(config: RunConfig, progress: Progress, epoch: int, step: int) -> float:
    """Learning rate of a step (from 0) of an epoch (from 1)."""
    return learning_rate(config.optim, progress.first_step(epoch) + step, progress.total_steps)


def image_size_px_at(config: RunConfig, progress: Progress, epoch: int, step: int) -> Size:
    """Height and width of the pictures in a step (from 0) of an epoch (from 1)."""
    return size_px(config, progress.first_step(epoch) + step, progress.total_steps)


def relative_area_of(config: RunConfig, progress: Progress, epoch: int) -> float:
    """Mean area of an epoch's pictures, as a share of the full one."""
    first = progress.first_step(epoch)
    return relative_area(config, first, first + progress.steps_of(epoch), progress.total_steps)


def fit_budget(config: RunConfig, progress: Progress, steps: int, seconds: float, validation_s: float = 0.0) -> None:
    """With `train.budget_min`, set the total number of steps to what fits at the speed of the first `steps` steps.

    seconds: that those took. A step costs as much as the area of its pictures (petseg.run.resizing), and each epoch has
    a validation.
    """
    if minutes := config.train.budget_min:
        area = relative_area(config, 0, steps, progress.total_steps)
        full_step_s = seconds / (steps * area)
        mean_step_s = full_step_s * relative_area(config, 0, progress.total_steps, progress.total_steps)
        seconds_per_step = mean_step_s + validation_s / progress.steps_per_epoch
        progress.total_steps = max(steps, int(60 * minutes / seconds_per_step))
