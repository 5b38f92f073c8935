"""Make the model of a weights file smaller (petseg.best), to be trained further.

python -m petseg.compress prune --weights winner.safetensors --keep 0.5 --out pruned.safetensors

prune keeps the strongest channels of each layer: the same architecture at a smaller width. It has to be trained
further, best with the whole network as its teacher:

python petseg/train.py --model.width 8 --model.init pruned.safetensors --distill.teacher winner.safetensors
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

from shards.command import OK, parse, run_command
from shards.terminal import Terminal


@dataclass(frozen=True)
class Prune:
    """Remove whole channels of unet or resnet34_unet: the same architecture at a smaller width."""

    how: Annotated[Literal["prune"], tyro.conf.Positional]
    """prune: remove whole channels of unet or resnet34_unet."""
    weights: Path
    """The weights file, of a single network."""
    out: Path
    """The file to write, .safetensors."""
    keep: float = 0.5
    """Share of the width that is kept; a half leaves about a quarter of the parameters."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Prune, argv, __doc__)
    from petseg.inference.prune import prune  # torch takes seconds: imported once the flags are right

    pruned = prune(command.weights, command.keep, command.out)
    width = pruned.header.models[0].width
    for line in (f"{pruned}", f"train it further: --model.width {width} --model.init {command.out}", f"{command.out}"):
        Terminal().print(line, soft_wrap=True, highlight=False)
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
