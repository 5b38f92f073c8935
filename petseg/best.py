"""Write a run's weights to one file that carries everything: model, classes, size rule, numbers, origin.

python -m petseg.best runs/single/unet-none-0123456789 --out winner.safetensors

Several runs become an ensemble, or with --average one network with the mean of their weights:

python -m petseg.best runs/lab/seed-0 runs/lab/seed-1 --out winner.safetensors --shards data/shards --split test

`petseg.load("winner.safetensors")` reads the file.
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

from petseg.metrics import Tta
from shards.command import OK, run_command
from shards.command.flags import parse


@dataclass(frozen=True)
class Command:
    """Write the weights of a run, or of several, to one file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of the runs; several make an ensemble."""
    out: Path
    """The file, .safetensors."""
    weights: Literal["best", "last"] = "best"
    """Which checkpoint: the best validation Dice, or the last epoch."""
    average: bool = False
    """Average the weights of several runs into one network, in place of an ensemble. That can be better or far worse
    than its runs: measure it with --shards."""
    shards: str = ""
    """Measure the model on this shard set, and keep the numbers in the file."""
    split: Literal["train", "val", "test"] = "val"
    """What to measure on."""
    tta: Tta = "none"
    """Average the probabilities of several views when measuring, as petseg.evaluate does."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if not command.runs:
        raise ValueError("name the folder of a run, such as runs/single/unet-none-0123456789")
    from petseg.inference.scores import Measurement  # torch takes seconds: imported once the flags are right
    from petseg.inference.winner import write_winner

    measurement = Measurement(command.shards, command.split, command.tta) if command.shards else None
    write_winner(command.runs, command.out, command.weights, command.average, measurement)
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
