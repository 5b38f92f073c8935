"""The learning rate and the picture size of each step, and the number of steps that fit a budget of minutes."""

from __future__ import annotations

from petseg.config import RunConfig
from petseg.config.sizes import Size
from petseg.optim import learning_rate
from petseg.run.progress import Progress
from petseg.run.resizing import relative_area, size_px


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
