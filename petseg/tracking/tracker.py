"""The record of a run's numbers: metrics.jsonl, and wandb as a view of it that can neither stop nor slow training."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petseg.config import TrackingConfig
from petseg.config.values import flatten
from petseg.run_folder.attempts import Attempt, read_attempts
from petseg.run_folder.layout import (
    METRICS_NAME,
    append_metrics,
    load_config,
    load_overrides,
    read_metrics,
    write_metrics,
)
from petseg.tracking.artifacts import find_artifacts
from petseg.tracking.naming import RunName, save_name
from petseg.tracking.note import TrackingNote, save_note
from petseg.tracking.overlays import best_name, forget_after, is_due, save_overlays
from petseg.tracking.process import Answer, RunSettings, WandbProcess
from petseg.tracking.tensorboard_writer import TensorBoard
from shards.command import INTERRUPTED, Interrupted, without_secrets

if TYPE_CHECKING:
    from petseg.evaluation.measure import PredictedPicture

INIT_TIMEOUT_S = 60.0  # the training does not wait for it
FINISH_SHARE, CONFIRM_SHARE = 0.6, 0.3  # of the wait at the end: the client reports what it lacks before it is killed

End = Literal["finished", "pruned", "interrupted", "failed"]
# They set wandb's state of the run: INTERRUPTED marks it as preempting, which becomes preempted. Runs that were stopped
# early are finished for wandb too; `ended` in their summary says pruned
EXIT_CODES: dict[End, int] = {"finished": 0, "pruned": 0, "interrupted": INTERRUPTED, "failed": 1}

logger = logging.getLogger(__name__)


def how_ended(error: BaseException) -> End:
    """How a run ended that raised this error."""
    return "interrupted" if isinstance(error, Interrupted) else "failed"


class Tracker:
    """Appends one line per epoch to metrics.jsonl, flushed to disk, from which wandb's client reads.

    Built on rank 0 only. Lines of epochs after `resumed_epoch` are from an attempt whose checkpoint was lost: they are
    removed, since those epochs are about to be run again.
    """

    def __init__(
        self, folder: Path, config: TrackingConfig, name: RunName, run_config: Mapping[str, Any], resumed_epoch: int
    ) -> None:
        write_metrics([row for row in read_metrics(folder) if row["epoch"] <= resumed_epoch], folder)
        forget_after(resumed_epoch, folder)
        save_name(name, folder)
        self._folder, self._config, self._id = folder, config, name.wandb_id
        self._tensorboard = TensorBoard(folder, read_metrics(folder), resumed_epoch) if config.tensorboard else None
        self._wandb: Wandb | None = None
        if config.wandb != "disabled":
            settings = RunSettings(
                **describe(folder, name, run_config),
                project=config.project,
                entity=config.entity,
                mode=config.wandb,
                wandb_dir=str(folder),
                init_timeout_s=INIT_TIMEOUT_S,
                finish_timeout_s=FINISH_SHARE * config.wandb_wait_s,
                confirm_s=CONFIRM_SHARE * config.wandb_wait_s,
                first_epoch=0 if config.wandb == "online" else resumed_epoch + 1,
                watched_pid=os.getpid(),
            )
            self._wandb = Wandb(settings, config.wandb_wait_s, name.remedy(METRICS_NAME), folder)

    def wants_pictures(self, epoch: int) -> bool:
        """Whether to log an epoch, the best so far, with pictures; few epochs of a run are."""
        return self._config.overlays > 0 and is_due(epoch, self._folder)

    def log(self, row: Mapping[str, float], pictures: Sequence[PredictedPicture] = ()) -> None:
        """Log one epoch: its numbers, `epoch` and `step` among them, and pictures with the masks of its weights."""
        save_overlays(int(row["epoch"]), pictures, self._folder, best_name(int(row["epoch"])))
        append_metrics(row, self._folder)
        if self._tensorboard:
            self._tensorboard.log(row)
        if self._wandb:
            self._wandb.read_rows()

    def log_overlays(self, epoch: int, pictures: Sequence[PredictedPicture]) -> None:
        """Log the pictures of the end, with true and predicted masks that wandb can switch on and off."""
        save_overlays(epoch, pictures, self._folder)
        if self._wandb:
            self._wandb.read_rows()

    def finish(self, summary: Mapping[str, Any], ended: End = "finished") -> None:
        """Give wandb a limited time to send everything, and report how this attempt ended. Only the first call counts.

        An interrupted run is marked as preempting: it will resume.
        """
        if self._wandb:
            self._wandb.finish(summary, ended, self._artifacts() if ended == "finished" else [])
            self._wandb = None

    def _artifacts(self) -> list[dict[str, Any]]:
        try:
            artifacts = find_artifacts(self._folder, self._id, self._config.artifacts)
        except (ValueError, OSError) as error:  # the run itself is complete
            logger.warning("wandb gets no artifacts of %s: %s", self._folder, error)
            return []
        return [asdict(artifact) for artifact in artifacts]


class Wandb:
    """A run's wandb client. Only the first error (no network, no key, a limit) is logged."""

    def __init__(self, settings: RunSettings, wait_s: float, remedy: str, folder: Path | None = None) -> None:
        """wait_s: longest wait at the end; remedy: what the user can do if wandb has not received everything.

        folder: of the run whose tracking.json records the state of its view in wandb, None = record nothing
        """
        self._wait_s, self._remedy, self._failed, self._folder = wait_s, remedy, False, folder
        self._id, self._offline, self._lock = settings.id, settings.mode == "offline", threading.Lock()
        self._note(TrackingNote("offline" if self._offline else "starting"))
        self._process = WandbProcess(on_answer=self._handle)
        self._process.send(begin=asdict(settings))

    def read_rows(self) -> None:
        """Have the client read what is new in the folder."""
        self._process.send(rows={})

    def finish(self, summary: Mapping[str, Any], ended: End, artifacts: Sequence[Mapping[str, Any]] = ()) -> None:
        content = {**summary, "ended": ended}
        self._process.send(end={"summary": content, "exit_code": EXIT_CODES[ended], "artifacts": list(artifacts)})
        if self._process.wait_for("ended", self._wait_s) is None:
            begun = self._noted.url or self._offline
            what = "not all is sent after" if begun else "wandb has not taken the run until"
            since = "" if begun else " after its end"
            self._handle({"error": "TimeoutError", "text": f"{what} {self._wait_s:g} s{since}"})
        self._process.close()

    def _handle(self, answer: Answer) -> None:
        """Handle an answer, in the thread that reads them or at the end; after an error nothing else counts."""
        with self._lock:
            if self._failed:
                return
            if "error" in answer:
                self._failed = True
                text = " ".join(answer["text"].split()).replace(f"run {self._id}", "the run")  # so for all runs alike
                reason = f"{answer['error']}: {text}"
                self._note(replace(self._noted, state="lost", reason=reason))
                logger.warning("wandb is off for this run (%s); %s", reason, self._remedy)
            elif self._offline:
                return
            elif "begun" in answer:
                self._note(TrackingNote("sending", url=answer["url"], project_url=answer["project_url"]))
            elif "ended" in answer:
                self._note(replace(self._noted, state="sent"))
                logger.info("wandb: %s", self._noted.url)

    def _note(self, note: TrackingNote) -> None:
        self._noted = note
        if self._folder:
            save_note(note, self._folder)


def describe(folder: Path, name: RunName, run_config: Mapping[str, Any]) -> dict[str, Any]:
    """How wandb describes a run, besides its rows: fields of RunSettings."""
    resolved = flatten(run_config) | load_overrides(folder)
    config: dict[str, Any] = {n: without_secrets(v) if isinstance(v, str) else v for n, v in resolved.items()}
    attempts = read_attempts(folder)
    config |= {"sweep": name.group, **facts_of_attempts(attempts)}
    with contextlib.suppress(ValueError):
        stored = load_config(folder)
        config |= {"data_hash": stored["identity"]["manifest_hash"], "trial_id": stored["trial_id"]}
    return {
        "folder": str(folder),
        "id": name.wandb_id,
        "name": name.label,
        "program": name.program,
        "commit": str(config["git_commit"]),
        "remote": attempts[-1].remote if attempts else "",
        "group": name.group,
        "job_type": name.job_type,
        "tags": list(name.tags),
        "config": config,
    }


def facts_of_attempts(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Host, code and number of processes of a run's newest attempt; those of every attempt where they changed."""
    if not attempts:
        nowhere = {"host": "", "job_id": "", "restarts": 0, "world_size": 0}
        return nowhere | {"code_hash": "", "git_commit": "", "git_changed": False}
    newest = attempts[-1]
    facts: dict[str, Any] = {
        "host": newest.host,
        "job_id": newest.job_id,
        "restarts": newest.number - 1,
        "code_hash": newest.code,
        "git_commit": newest.commit,
        "git_changed": newest.changed,
        "world_size": newest.world_size,
    }
    for field, name in (("world_size", "world_sizes"), ("code", "code_hashes"), ("commit", "git_commits")):
        each = [getattr(attempt, field) for attempt in attempts]
        if len(set(each)) > 1:
            facts[name] = each
    return facts
