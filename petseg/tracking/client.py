"""The wandb client, in a process of its own: `python -m petseg.tracking.client`, told what to do line by line.

Whatever hangs in it can be left behind by ending it, and no exit hook of it holds up a training that is done. It reads
the rows from metrics.jsonl itself, so nothing piles up while it waits for the network, and what a training sends, what
one that goes on later adds, and what a replay sends are the same rows: each has its epoch as wandb's step, and
wandb tells at the start which step of a run was its last.

A line on stdin is {"begin": {...}}, {"rows": {}} or {"end": {...}}; each begin is answered by a line
{"begun": first step, "url": ..., "project_url": ..., "resumed": bool} and each end by {"ended": rows sent}, anything
that goes wrong by {"error": type, "text": ...}.

A run uploads few files: config.yaml, requirements.txt, wandb-metadata.json and wandb-summary.json, and three for each
set of pictures, of which there are at most 2 + log2(epochs): a sheet and its two masks. What the process printed is in
the run's log, and is not sent; what the machine did (GPU, memory) goes along with the rows.
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
from petseg.tracking.arrival import LossListener, confirm
from petseg.tracking.artifacts import Artifact, build
from petseg.tracking.begin import Begin
from petseg.tracking.overlays import IGNORED, OVERLAY_MASKS_NAME, Overlay, Pixels, best_name, load_overlays
from shards.command import INTERRUPTED, without_secrets

CLASSES = {0: "background", 1: "pet", 255: "ignored"}
PICTURES = "val/overlays"
ARTIFACT_ANSWER_S = 5
SHEET_COLUMNS = 4
PREFIXES = ("train/*", "val/*", "test/*", "perf/*")


@dataclass
class Sender:
    """A run of wandb that is open, and the step that comes next in it."""

    begin: Begin
    run: Any
    next_step: int = field(init=False)
    sent: int = 0  # rows

    def __post_init__(self) -> None:
        self.next_step = max(self.begin.first_epoch, self.run.starting_step)

    def send_rows(self) -> None:
        """Log what is new in metrics.jsonl, and at last the pictures: they are there when the last row is."""
        folder, last = Path(self.begin.folder), 0
        if self.begin.job_type == "eval":  # the rows are those of the training
            return
        for row in read_metrics(folder):
            last = int(row["epoch"])
            self._log(last, row, best_name(last))
        self._log(last + 1, {"epoch": last}, OVERLAY_MASKS_NAME)

    def _log(self, step: int, content: Mapping[str, Any], pictures: str) -> None:
        """A row with the pictures of its epoch, which are in a file or not; nothing where there are neither."""
        if step < self.next_step:
            return
        row = dict(content)
        with contextlib.suppress(FileNotFoundError, ValueError):  # damaged ones are none
            epoch, overlays = load_overlays(Path(self.begin.folder), pictures)
            if epoch == content["epoch"]:  # else they are of an attempt whose last epochs are run again
                row[PICTURES] = [sheet(overlays)]
        if len(row) > 1:
            self.run.log(row, step=step, commit=True)
            self.next_step, self.sent = step + 1, self.sent + 1

    def end(self, summary: Mapping[str, Any], exit_code: int, artifacts: Sequence[Mapping[str, Any]] = ()) -> None:
        self.send_rows()
        said = dict(summary)
        if self.begin.job_type == "train":
            said = best_and_last(read_metrics(Path(self.begin.folder))) | said
        self.run.summary.update(said)
        logged = [self.run.log_artifact(build(Artifact(**artifact))) for artifact in artifacts]
        if exit_code == INTERRUPTED:
            self.run.mark_preempting()
        path = f"{self.run.entity}/{self.run.project}/{self.run.id}"
        self.run.finish(exit_code=exit_code)
        if self.begin.mode != "online":
            return
        for artifact in logged:  # they have been sent by now, or refused
            try:
                artifact.wait(timeout=ARTIFACT_ANSWER_S)
            except Exception as error:
                raise RuntimeError(f"artifact {artifact.name} is not there: {error}") from error
        if self.begin.confirm_s:
            steps = {"_step": self.next_step - 1} if self.sent else {}
            confirm(path, {"ended": said["ended"], **steps}, self.begin.confirm_s)


def best_and_last(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a table of runs is sorted by: the best and the last validation Dice, and their epochs."""
    scored = [row for row in rows if "val/dice" in row]
    if not scored:
        return {}
    best = max(scored, key=lambda row: row["val/dice"])  # the first of equal ones, as the kept weights are
    return {
        "best_dice": best["val/dice"],
        "best_epoch": best["epoch"],
        "last_dice": scored[-1]["val/dice"],
        "last_epoch": scored[-1]["epoch"],
    }


def open_run(begin: Begin) -> Any:
    """wandb.init for a run that may be there already; raises what the client raises, within `init_timeout_s`."""
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # where it copies tables to: a home may be small, or read-only
        os.environ[name] = str(Path(begin.wandb_dir) / "wandb" / name.removeprefix("WANDB_").lower())
    import wandb

    wandb.setup()  # which would undo the next line later
    wandb.termsetup(wandb.Settings(silent=True), logging.getLogger("wandb"))  # LossListener's
    where: dict[str, Any] = {"x_stats_pid": begin.watched_pid}
    if not begin.watched_pid:  # what this machine is and does says nothing about the run
        where = {"host": begin.host or None}
        where |= {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
    run = wandb.init(
        project=begin.project,
        entity=begin.entity or None,
        id=begin.id,
        name=begin.name or begin.id,
        group=begin.group or None,
        job_type=begin.job_type,
        tags=list(begin.tags),
        config=dict(begin.config),
        dir=begin.wandb_dir,
        mode="online" if begin.mode == "online" else "offline",
        resume="allow" if begin.mode == "online" else None,
        settings=wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,  # it would look at the copy of the code, or at wherever this process was started
            program=begin.program,
            git_commit=begin.commit or None,
            git_remote_url=begin.remote or None,
            init_timeout=begin.init_timeout_s,
            finish_timeout=begin.finish_timeout_s,
            finish_timeout_raises=True,
            **where,
        ),
    )
    run.config.update(dict(begin.config), allow_val_change=True)  # an attempt on another host, with another world size
    run.define_metric("epoch")
    run.define_metric("step")
    for metrics in PREFIXES:
        run.define_metric(metrics, step_metric="epoch")
    return run


def sheet(overlays: Sequence[Overlay]) -> Any:
    """The pictures side by side as one image, with masks to switch on and off over all of them.

    Each picture with two masks of its own would be three uploads.
    """
    import wandb

    masks = {"prediction": [o.prediction for o in overlays], "truth": [o.truth for o in overlays]}
    return wandb.Image(
        tile([overlay.image for overlay in overlays], 0),
        caption=", ".join(f"{overlay.key} {overlay.dice:.3f}" for overlay in overlays),
        file_type="jpg",
        masks={name: {"mask_data": tile(tiles, IGNORED), "class_labels": CLASSES} for name, tiles in masks.items()},
    )


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


def whereabouts(run: Any, begin: Begin) -> dict[str, Any]:
    """Where people find the run, and whether wandb had it before."""
    if begin.mode != "online":  # the client would warn that there is no address
        return {"url": "", "project_url": "", "resumed": False}
    addresses = {"url": run.url or "", "project_url": run.project_url or ""}
    return {name: without_secrets(address) for name, address in addresses.items()} | {"resumed": run.resumed}


def serve(commands: TextIO, answers: int) -> None:
    """Do what is asked until the input ends; a run whose owner died without a word is failed, with all its rows.

    answers: file descriptor
    """
    sender: Sender | None = None
    logging.getLogger("wandb").addHandler(
        LossListener(lambda text: answer(error="LostRows", text=without_secrets(text)))
    )

    def answer(**content: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the owner is dead, and its rows are still to be sent
            os.write(answers, (json.dumps(content) + "\n").encode())

    for line in commands:
        ((verb, content),) = json.loads(line).items()
        try:
            if verb == "begin":
                begin = Begin(**content)
                sender = Sender(begin, open_run(begin))
                answer(begun=sender.next_step, **whereabouts(sender.run, begin))
            elif sender and verb == "rows":
                sender.send_rows()
            elif sender and verb == "end":
                open_sender, sender = sender, None
                open_sender.end(**content)
                answer(ended=open_sender.sent)
        except Exception as error:  # whatever the client raises, its owner is told
            sender = None
            answer(error=type(error).__name__, text=without_secrets(str(error)))
    if sender:
        sender.end({"ended": "failed"}, exit_code=1)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # meant for the training, which will say what to do
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the client prints is no answer
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
