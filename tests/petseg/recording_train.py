"""`petseg/train.py` that writes down which keys each step consumed, and can be told to be stopped.

RECORD_TO is a folder; STOP is SIGNAL:RANK:EPOCH:STEP, the signal that this rank gets after that step; with NO_NORMS
the model has no BatchNorm.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from petseg import train
from petseg.data.loader import Batch
from petseg.run import parts as parts_module
from petseg.run.run import Run
from petseg.training import step as step_module
from shards.command import run_command

FOLDER = Path(os.environ["RECORD_TO"])
train_step = step_module.train_step


def recorded_step(run: Run, epoch: int, step: int, micro_batches: Sequence[Batch], sums: torch.Tensor) -> None:
    train_step(run, epoch, step, micro_batches, sums)
    hashes = [int(h) for batch in micro_batches if not batch.plan.filler for h in batch.hashes]
    row = {"world": run.parts.world_size, "epoch": epoch, "step": step, "hashes": hashes}
    with (FOLDER / f"{run.parts.world_size}-{run.parts.rank}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    if os.environ.get("STOP", "").split(":")[1:] == [str(run.parts.rank), str(epoch), str(step)]:
        os.kill(os.getpid(), signal.Signals[os.environ["STOP"].partition(":")[0]])


if __name__ == "__main__":
    step_module.train_step = recorded_step
    if "NO_NORMS" in os.environ:
        from tests.petseg.normless import build_normless  # needs the repository on PYTHONPATH

        parts_module.build_model = build_normless
    sys.exit(run_command(train.main))
