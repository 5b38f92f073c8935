"""Write the weights of a sweep's best trial to one file that carries everything.

python jobs/best.py lab --out winner.safetensors
python jobs/best.py lab --out winner.safetensors --seeds ensemble

The best cell has the highest mean val Dice over its seeds, and its best seed the highest val Dice; test numbers choose
nothing. --trial names another one.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from shards.command import OK, run_command
from shards.command.flags import parse


@dataclass(frozen=True)
class Command:
    """Write the weights of a sweep's best trial, or of all seeds of its best cell, to one file."""

    sweep: Annotated[str, tyro.conf.Positional] = "lab"
    """Name of the sweep, or its folder."""
    out: Path = Path("winner.safetensors")
    """The file, .safetensors."""
    trial: str = ""
    """Take this trial instead: its id, the beginning of it, or words of its axes, as in `unet seed=0`."""
    seeds: Literal["best", "ensemble", "average"] = "best"
    """best = the cell's best seed alone; ensemble = all its finished seeds, whose probabilities are averaged; average =
    one network with the mean of their weights, which can be far worse: measure it with --shards."""
    shards: str = ""
    """Measure the model on this shard set, and keep the numbers in the file."""
    split: Literal["val", "test"] = "val"
    """What to measure on."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    from jobs.reporting.best_trials import best_trials
    from jobs.runs.choose import choose_one
    from jobs.runs.single_runs import find_runs

    sweep = find_runs(command.sweep, command.runs_dir)
    trials = [choose_one(sweep, command.trial)] if command.trial else best_trials(sweep, command.seeds != "best")
    from petseg.inference.scores import Measurement  # torch takes seconds: imported once the trial is known
    from petseg.inference.winner import write_winner

    measurement = Measurement(command.shards, command.split, "none") if command.shards else None
    folders = [trial.folder for trial in trials]
    write_winner(folders, command.out, "best", command.seeds == "average", measurement)
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
