"""What a run will need, without running it: parameters, FLOPs, memory, time, and the largest batch that fits.

python -m petseg.estimate --model.arch unet --train.mixed-precision bf16 --device H100
python -m petseg.estimate --model.arch fpn --model.encoder mit_b2 --device A100 --gpu-gb 40 --world-size 4
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from petseg.config import RunConfig
from shards.command import OK, run_command
from shards.command.flags import parse
from shards.terminal import Terminal


@dataclass(frozen=True)
class Command:
    """What a run will need, without running it."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    device: str = ""
    """Name of a GPU such as H100 or "A100 SXM4 40GB", or cpu; by default this machine's GPU, else an H100."""
    gpu_gb: float = 0.0
    """Memory of the device in GB, if it differs from its data sheet; for a CPU, the memory that the process may use."""
    world_size: int = 1
    """Number of processes, each with a GPU."""

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.world_size > self.run.train.batch_size:
            raise ValueError(f"--world-size {self.world_size}: must lie in 1..train.batch_size")
        if self.gpu_gb < 0:
            raise ValueError(f"--gpu-gb {self.gpu_gb}: must be positive")


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    from petseg.training.needs import estimate_needs, render  # torch takes seconds: imported once the flags are right

    needs = estimate_needs(command.run, command.world_size, command.device, command.gpu_gb)
    Terminal(width=None if sys.stdout.isatty() else 160).print(render(needs), highlight=False)
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
