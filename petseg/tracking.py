"""Where a run's numbers go: metrics.jsonl is the truth, wandb a view of it that can neither stop nor slow training."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petseg.config import TrackingConfig, flatten
from petseg.run_folder import append_metrics, read_metrics, write_metrics

if TYPE_CHECKING:
    from petseg.evaluate import Picture

FINISH_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunName:
    """How wandb shows a run; the same id is the same run for ever."""

    id: str
    group: str = ""
    job_type: str = "train"
    tags: tuple[str, ...] = ()


class Tracker:
    """Appends one line per epoch to metrics.jsonl, flushed to disk, and gives wandb the same dict.

    Made on rank 0 only. Lines of epochs after `resumed_epoch` are from a life whose checkpoint was lost: they are cut
    off, since those epochs are about to be run again.
    """

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        name: RunName,
        run_config: Mapping[str, Any],
        resumed_epoch: int,
    ) -> None:
        write_metrics([row for row in read_metrics(folder) if row["epoch"] <= resumed_epoch], folder)
        self._folder = folder
        self._wandb = WandbThread(folder, config, name, run_config) if config.wandb != "disabled" else None

    def log(self, row: Mapping[str, float]) -> None:
        """One epoch's numbers, with `epoch` and `step` among them."""
        append_metrics(row, self._folder)
        if self._wandb:
            content = dict(row)
            self._wandb.send(lambda run: run.log(content))

    def log_overlays(self, epoch: int, pictures: Sequence[Picture]) -> None:
        """Pictures with true and predicted masks that wandb can switch on and off."""
        if self._wandb:
            self._wandb.send(lambda run: run.log({"epoch": epoch, "val/overlays": _wandb_images(pictures)}))

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Give wandb a limited time to send what it has."""
        if self._wandb:
            content = dict(summary)
            self._wandb.send(lambda run: run.summary.update(content))
            self._wandb.finish(exit_code)


class WandbThread:
    """The wandb client in a thread of its own: training puts work in a queue and never waits for it.

    The first error (no network, no key, a limit) is logged once; what comes after is dropped.
    """

    def __init__(self, folder: Path, config: TrackingConfig, name: RunName, run_config: Mapping[str, Any]) -> None:
        self._work: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._exit_code = 0
        self._thread = threading.Thread(
            target=self._run, args=(folder, config, name, flatten(run_config)), name="wandb", daemon=True
        )
        self._thread.start()

    def send(self, work: Callable[[Any], None]) -> None:
        self._work.put(work)

    def finish(self, exit_code: int) -> None:
        self._exit_code = exit_code
        self._work.put(None)
        self._thread.join(FINISH_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("wandb did not finish within %.0f s and is left behind", FINISH_TIMEOUT_S)

    def _run(self, folder: Path, config: TrackingConfig, name: RunName, run_config: Mapping[str, Any]) -> None:
        try:
            run = _init_wandb(folder, config, name, run_config)
            while (work := self._work.get()) is not None:
                work(run)
            run.finish(exit_code=self._exit_code)
        except Exception as error:  # whatever the client raises, training goes on
            logger.warning(
                "wandb is off for this run (%s: %s); metrics.jsonl has everything",
                type(error).__name__,
                error,
            )


def _init_wandb(folder: Path, config: TrackingConfig, name: RunName, run_config: Mapping[str, Any]) -> Any:
    import wandb

    run = wandb.init(
        project=config.project,
        entity=config.entity or None,
        id=name.id,
        name=name.id,
        group=name.group or None,
        job_type=name.job_type,
        tags=list(name.tags),
        config=dict(run_config),
        dir=str(folder),
        mode=config.wandb,
        resume="allow" if config.wandb == "online" else None,
        settings=wandb.Settings(silent=True, console="off", init_timeout=60, save_code=False, disable_git=True),
    )
    run.define_metric("epoch")
    for metrics in ("train/*", "val/*", "perf/*"):
        run.define_metric(metrics, step_metric="epoch")
    return run


def _wandb_images(pictures: Sequence[Picture]) -> list[Any]:
    import wandb

    classes = {0: "background", 1: "pet", 255: "ignored"}
    return [
        wandb.Image(
            picture.image,
            caption=picture.key,
            masks={
                "prediction": {"mask_data": picture.prediction, "class_labels": classes},
                "truth": {"mask_data": picture.truth, "class_labels": classes},
            },
        )
        for picture in pictures
    ]
