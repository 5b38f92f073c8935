"""The progress of training: a moving bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shards.terminal import Terminal, duration

LOG_EVERY_S = 30.0

logger = logging.getLogger(__name__)


class TrainProgress:
    """Progress of a whole training: epoch, step, loss, images/s and the time left. Silent unless `enabled`."""

    def __init__(self, total_steps: int, steps_per_epoch: int, done_steps: int, enabled: bool) -> None:
        self.total, self.steps_per_epoch = total_steps, steps_per_epoch
        self.enabled = enabled
        self.live = enabled and sys.stderr.isatty()
        self.start_time, self.start_step, self.last_line = time.monotonic(), done_steps, time.monotonic()
        self.bar = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps  loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:.1f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Terminal(stderr=True),
            disable=not self.live,
        )
        self.task = self.bar.add_task(
            "train", total=self.total, completed=done_steps, epoch=0, epochs=self.epochs, loss=float("nan"), rate=0.0
        )

    @property
    def epochs(self) -> int:
        return -(-self.total // self.steps_per_epoch)

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, total_steps: int, loss: float, images_per_s: float) -> None:
        """Show the progress. step: optimizer steps since the start of the run; total_steps: as known by now"""
        self.total = total_steps
        epoch = min((step - 1) // self.steps_per_epoch + 1, self.epochs)
        self.bar.update(
            self.task,
            completed=step, total=self.total, epoch=epoch, epochs=self.epochs, loss=loss, rate=images_per_s,
        )  # fmt: skip
        now = time.monotonic()
        if self.enabled and not self.live and now - self.last_line >= LOG_EVERY_S:
            self.last_line = now
            left_s = (now - self.start_time) / max(step - self.start_step, 1) * (self.total - step)
            logger.info(
                "epoch %d/%d step %d/%d loss %.4f %.1f images/s, %s left",
                epoch, self.epochs, step, self.total, loss, images_per_s, duration(left_s),
            )  # fmt: skip

    def epoch_done(self, row: dict[str, float]) -> None:
        if self.enabled:
            logger.info(
                "epoch %d/%d train loss %.4f dice %.4f | val loss %.4f dice %.4f iou %.4f | %.1f images/s, "
                "data wait %.1f %%, %.1f images/s without it",
                row["epoch"], self.epochs, row["train/loss"], row["train/dice"], row["val/loss"], row["val/dice"],
                row["val/iou"], row["perf/images_per_s"], 100 * row["perf/data_wait"],
                row["perf/headroom"],
            )  # fmt: skip
