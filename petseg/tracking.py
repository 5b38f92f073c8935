"""Where a run's numbers go: metrics.jsonl is the truth, wandb a view of it that can neither stop nor slow training."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petseg.config import TrackingConfig, flatten
from petseg.lives import read_lives
from petseg.run_folder import append_metrics, load_config, read_metrics, write_metrics
from petseg.tracking_client import Begin, without_secrets
from petseg.tracking_overlays import save_overlays
from petseg.tracking_process import Answer, WandbProcess
from shards.command import INTERRUPTED, Interrupted

if TYPE_CHECKING:
    from petseg.evaluate import Picture

INIT_TIMEOUT_S = 60.0  # beside the training, which does not wait for it
MAX_ID = 128  # characters, by wandb's own check

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunName:
    """How wandb shows a run; the same id is the same run for ever."""

    id: str
    group: str = ""
    job_type: Literal["train", "eval"] = "train"
    tags: tuple[str, ...] = ()

    @property
    def wandb_id(self) -> str:
        """The id in characters that wandb takes everywhere; of a long one its end is kept, which tells trials apart."""
        return re.sub(r"[^A-Za-z0-9_.-]", "-", self.id)[-MAX_ID:]


class Tracker:
    """Appends one line per epoch to metrics.jsonl, flushed to disk, and lets wandb's client read it.

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
        self._wandb: Wandb | None = None
        if config.wandb != "disabled":
            begin = Begin(
                **describe(folder, name, run_config),
                project=config.project,
                entity=config.entity,
                mode=config.wandb,
                wandb_dir=str(folder),
                init_timeout_s=INIT_TIMEOUT_S,
                finish_timeout_s=0.8 * config.wandb_wait_s,  # that the client says what it lacks before it is ended
                first_epoch=0 if config.wandb == "online" else resumed_epoch + 1,
                watched_pid=os.getpid(),
            )
            self._wandb = Wandb(begin, config.wandb_wait_s, folder.parents[1] if name.group else folder)

    def log(self, row: Mapping[str, float]) -> None:
        """One epoch's numbers, with `epoch` and `step` among them."""
        append_metrics(row, self._folder)
        if self._wandb:
            self._wandb.look()

    def log_overlays(self, epoch: int, pictures: Sequence[Picture]) -> None:
        """Pictures with true and predicted masks that wandb can switch on and off, kept for a replay too."""
        save_overlays(epoch, pictures, self._folder)
        if self._wandb:
            self._wandb.look()

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Give wandb a limited time to send what it has; called again, nothing.

        Where an Interrupted is on its way the run is marked as preempting: it will go on.
        """
        if exit_code and isinstance(sys.exc_info()[1], Interrupted):
            exit_code = INTERRUPTED
        if self._wandb:
            self._wandb.finish(summary, exit_code)
            self._wandb = None


class Wandb:
    """A run's wandb client. The first thing that goes wrong (no network, no key, a limit) is logged, once."""

    def __init__(self, begin: Begin, wait_s: float, replayed_by: Path) -> None:
        """wait_s: longest wait at the end; replayed_by: what `jobs/sync.py` is to be given to send the run."""
        self._wait_s, self._replayed_by, self._told = wait_s, replayed_by, False
        self._process = WandbProcess(on_error=self._tell)
        self._process.send(begin=asdict(begin))

    def look(self) -> None:
        """Say that there is something new in the folder."""
        self._process.send(rows={})

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        self._process.send(end={"summary": dict(summary), "exit_code": exit_code})
        if self._process.wait_for("ended", self._wait_s) is None:
            self._tell({"error": "TimeoutError", "text": f"not all is sent after {self._wait_s:g} s"})
        self._process.close()

    def _tell(self, answer: Answer) -> None:
        if self._told:
            return
        self._told = True
        logger.warning(
            "wandb is off for this run (%s: %s); metrics.jsonl has everything, `python jobs/sync.py %s` sends it later",
            answer["error"], " ".join(answer["text"].split()), self._replayed_by,
        )  # fmt: skip


def describe(folder: Path, name: RunName, run_config: Mapping[str, Any]) -> dict[str, Any]:
    """What wandb is told of a run, besides its rows: fields of Begin."""
    lives = read_lives(folder)[-1:]
    config: dict[str, Any] = {
        n: without_secrets(v) if isinstance(v, str) else v for n, v in flatten(run_config).items()
    }
    config |= {"sweep": name.group, "host": "", "restarts": 0, "code_hash": ""}
    if lives:
        config |= {"host": lives[0].host, "restarts": lives[0].number - 1, "code_hash": lives[0].code}
    with contextlib.suppress(ValueError):
        config["data_hash"] = load_config(folder)["identity"]["manifest_hash"]
    return {
        "folder": str(folder),
        "id": name.wandb_id,
        "group": name.group,
        "job_type": name.job_type,
        "tags": list(name.tags),
        "config": config,
    }
