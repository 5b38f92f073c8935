"""Try models on pictures of your own in a browser: masks, overlays, probabilities, cut-outs and how long they take.

python -m petseg.demo --weights winner.safetensors
python -m petseg.demo --weights winner.safetensors winner.int8.onnx
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from shards.command import OK, run_command
from shards.command.flags import parse


@dataclass(frozen=True)
class Command:
    """Show what models make of your pictures, on a page on 127.0.0.1, until Ctrl-C."""

    weights: tuple[Path, ...]
    """Weights files (petseg.best) and ONNX files of petseg; of several, the page compares any two."""
    port: int = 0
    """Where the page is; 0 = any free port."""
    device: str = "auto"
    """auto = a GPU if there is one, or a name of torch such as cpu or cuda:1."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if not command.weights:
        raise ValueError("name a weights file after --weights: make one with `python -m petseg.best`")
    from petseg.inference.demo.models import load_models  # torch takes seconds
    from petseg.inference.demo.server import DemoServer
    from shards.loopback import serve

    serve(DemoServer(load_models(command.weights, command.device), command.port), "drop pictures here")
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
