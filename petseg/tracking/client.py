"""The wandb client in a process of its own, `python -m petseg.tracking.client`, which takes a command per line.

If it hangs, it can be killed, and its exit hooks do not hold up a training that is done. It reads the rows from
metrics.jsonl itself, so nothing piles up while it waits for the network, and a training, its next attempt and a replay
send the same rows: each row has its epoch as wandb's step, and wandb reports at the start which step of the run was the
last.

A line on stdin is {"begin": {...}}, {"rows": {}} or {"end": {...}}. A begin is answered by the line
{"begun": first step, "url": ..., "project_url": ..., "resumed": bool}, an end by {"ended": rows sent}, and any error by
{"error": type, "text": ...}.

A run uploads few files: config.yaml, requirements.txt, wandb-metadata.json and wandb-summary.json, and three for each
set of pictures, of which there are at most 2 + log2(epochs): a sheet and its two masks. What the process prints stays
in the run's log; the machine's load (GPU, memory) is sent with the rows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from petseg.run_folder.layout import read_metrics
from petseg.targets.target import implied_target, load_target
from petseg.tracking.arrival import LossListener, confirm
from petseg.tracking.artifacts import Artifact, build
from petseg.tracking.overlays import IGNORED, OVERLAY_MASKS_NAME, Overlay, Pixels, best_name, load_overlays
from petseg.tracking.process import RunSettings
from shards.command import INTERRUPTED, Failure, without_secrets

PICTURES = "val/overlays"
ARTIFACT_ANSWER_S = 5
SHEET_COLUMNS = 4
PREFIXES = ("train/*", "val/*", "test/*", "perf/*")


@dataclass
class Sender:
    """An open wandb run, and its next step."""

    settings: RunSettings
    run: Any
    next_step: int = field(init=False)
    sent: int = 0  # rows

    def __post_init__(self) -> None:
        self.next_step = max(self.settings.first_epoch, self.run.starting_step)

    def send_rows(self) -> None:
        """Log the new rows of metrics.jsonl, then the pictures of the end, which are saved after the last row."""
        folder, last = Path(self.settings.folder), 0
        if self.settings.job_type == "eval":  # the rows belong to the training's run
            return
        for row in read_metrics(folder):
            last = int(row["epoch"])
            self._log(last, row, best_name(last))
        self._log(last + 1, {"epoch": last}, OVERLAY_MASKS_NAME)

    def _log(self, step: int, content: Mapping[str, Any], pictures: str) -> None:
        """Log a row with the pictures of its epoch, if their file exists; nothing if there is neither."""
        if step < self.next_step:
            return
        row = dict(content)
        with contextlib.suppress(FileNotFoundError, ValueError):  # no pictures, or damaged ones
            epoch, overlays = load_overlays(Path(self.settings.folder), pictures)
            if epoch == content["epoch"]:  # else they are from an attempt whose last epochs are run again
                row[PICTURES] = [sheet(overlays, class_labels(Path(self.settings.folder)))]
        if len(row) > 1:
            self.run.log(row, step=step, commit=True)
            self.next_step, self.sent = step + 1, self.sent + 1

    def end(self, summary: Mapping[str, Any], exit_code: int, artifacts: Sequence[Mapping[str, Any]] = ()) -> None:
        self.send_rows()
        totals = dict(summary)
        if self.settings.job_type == "train":
            totals = best_and_last(read_metrics(Path(self.settings.folder))) | totals
        self.run.summary.update(totals)
        logged = [self.run.log_artifact(build(Artifact(**artifact))) for artifact in artifacts]
        if exit_code == INTERRUPTED:
            self.run.mark_preempting()
        path = f"{self.run.entity}/{self.run.project}/{self.run.id}"
        self.run.finish(exit_code=exit_code)
        if self.settings.mode != "online":
            return
        for artifact in logged:  # by now they have been sent or refused
            try:
                artifact.wait(timeout=ARTIFACT_ANSWER_S)
            except Exception as error:
                raise RuntimeError(f"artifact {artifact.name} is not there: {error}") from error
        if self.settings.confirm_s:
            steps = {"_step": self.next_step - 1} if self.sent else {}
            confirm(path, {"ended": totals["ended"], **steps}, self.settings.confirm_s)


def best_and_last(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns by which a table of runs is sorted: the best and the last validation Dice, and their epochs."""
    scored = [row for row in rows if "val/dice" in row]
    if not scored:
        return {}
    best = max(scored, key=lambda row: row["val/dice"])  # the first of equals, whose weights are kept
    return {
        "best_dice": best["val/dice"],
        "best_epoch": best["epoch"],
        "last_dice": scored[-1]["val/dice"],
        "last_epoch": scored[-1]["epoch"],
    }


def open_run(settings: RunSettings) -> Any:
    """Open a run that wandb may know already; raises what the client raises, within `init_timeout_s`."""
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # it copies tables there: a home may be small or read-only
        os.environ[name] = str(Path(settings.wandb_dir) / "wandb" / name.removeprefix("WANDB_").lower())
    import wandb

    wandb.setup()  # later it would undo the next line
    wandb.termsetup(wandb.Settings(silent=True), logging.getLogger("wandb"))  # LossListener's
    where: dict[str, Any] = {"x_stats_pid": settings.watched_pid}
    if not settings.watched_pid:  # a replay: this machine is not the run's
        where = {"host": settings.host or None}
        where |= {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
    run = wandb.init(
        project=settings.project, entity=settings.entity or None,
        id=settings.id, name=settings.name or settings.id, group=settings.group or None,
        job_type=settings.job_type, tags=list(settings.tags), config=dict(settings.config), dir=settings.wandb_dir,
        mode="online" if settings.mode == "online" else "offline",
        resume="allow" if settings.mode == "online" else None,
        settings=wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,  # it would look at the copy of the code, or at wherever this process was started
            program=settings.program,
            git_commit=settings.commit or None,
            git_remote_url=settings.remote or None,
            init_timeout=settings.init_timeout_s,
            finish_timeout=settings.finish_timeout_s,
            finish_timeout_raises=True,
            **where,
        ),
    )  # fmt: skip
    # an attempt can be on another host, with another world size
    run.config.update(dict(settings.config), allow_val_change=True)
    for metric in ("epoch", "step"):
        run.define_metric(metric)
    for metrics in PREFIXES:
        run.define_metric(metrics, step_metric="epoch")
    return run


def sheet(overlays: Sequence[Overlay], labels: Mapping[int, str]) -> Any:
    """The pictures side by side as one image, with masks to switch on and off over all of them.

    Separate pictures, each with two masks, would be three uploads per picture.
    """
    import wandb

    masks = {"prediction": [o.prediction for o in overlays], "truth": [o.truth for o in overlays]}
    return wandb.Image(
        tile([overlay.image for overlay in overlays], 0),
        caption=", ".join(f"{overlay.key} {overlay.dice:.3f}" for overlay in overlays),
        file_type="jpg",
        masks={name: {"mask_data": tile(tiles, IGNORED), "class_labels": labels} for name, tiles in masks.items()},
    )


def class_labels(folder: Path) -> dict[int, str]:
    """The names of the classes of a run's masks; the implied ones where the run keeps no target, or a damaged one."""
    target = implied_target()
    with contextlib.suppress(Failure):
        target = load_target(folder) or target
    return {**dict(enumerate(target.names)), IGNORED: "ignored"}


def tile(pictures: Sequence[Pixels], filler: int) -> Pixels:
    """Pictures (H, W) or (H, W, 3) in rows of SHEET_COLUMNS, each in a cell as large as the largest of them."""
    columns = min(SHEET_COLUMNS, len(pictures))
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    shape = (-(-len(pictures) // columns) * height, columns * width, *pictures[0].shape[2:])
    whole = np.full(shape, filler, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        whole[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return whole


def addresses_of(run: Any, mode: str) -> dict[str, Any]:
    """The addresses of the run and its project, and whether wandb had the run before."""
    if mode != "online":  # the client would warn that there is no address
        return {"url": "", "project_url": "", "resumed": False}
    addresses = {"url": run.url or "", "project_url": run.project_url or ""}
    return {name: without_secrets(address) for name, address in addresses.items()} | {"resumed": run.resumed}


def serve(commands: TextIO, answers: int) -> None:
    """Carry out commands until the input ends; if the training died, its run gets all rows and is marked as failed.

    answers: file descriptor
    """
    sender: Sender | None = None
    logging.getLogger("wandb").addHandler(
        LossListener(lambda text: answer(error="LostRows", text=without_secrets(text)))
    )

    def answer(**content: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the training is dead, and its rows are still to be sent
            os.write(answers, (json.dumps(content) + "\n").encode())

    for line in commands:
        ((verb, content),) = json.loads(line).items()
        try:
            if verb == "begin":
                settings = RunSettings(**content)
                sender = Sender(settings, open_run(settings))
                answer(begun=sender.next_step, **addresses_of(sender.run, settings.mode))
            elif sender and verb == "rows":
                sender.send_rows()
            elif sender and verb == "end":
                open_sender, sender = sender, None
                open_sender.end(**content)
                answer(ended=open_sender.sent)
        except Exception as error:  # whatever the client raises, the training is told
            sender = None
            answer(error=type(error).__name__, text=without_secrets(str(error)))
    if sender:
        sender.end({"ended": "failed"}, exit_code=1)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # meant for the training, which sends a command then
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the client prints must not mix with answers
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
