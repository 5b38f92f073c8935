"""Export a weights file (petseg.best) for other programs, and compare the result with the model on real pictures.

python -m petseg.export --weights winner.safetensors --out winner.onnx --shards data/shards
python -m petseg.export --weights winner.safetensors --out winner.onnx --end-to-end --dynamic-size
python -m petseg.export --weights winner.safetensors --out winner.pt2
python -m petseg.export --weights winner.safetensors --out winner-hub

The suffix of --out says the format: .onnx, .pt2 (torch.export), and without one a folder for the Hugging Face hub.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from shards.command import OK, run_command
from shards.command.flags import parse
from shards.terminal import Terminal

if TYPE_CHECKING:
    from petseg.inference.header import Header
    from petseg.inference.samples import Samples

FORMATS = (".onnx", ".pt2", "")


@dataclass(frozen=True)
class Command:
    """Export a weights file as ONNX, as a program of torch.export, or as a folder for the Hugging Face hub."""

    weights: Path
    """The weights file."""
    out: Path
    """The file, .onnx or .pt2; or, without a suffix, the folder."""
    shards: str = ""
    """Compare on pictures of this shard set, with Dice; without one, on drawn patches of colour."""
    split: Literal["train", "val", "test"] = "val"
    """Where the pictures come from."""
    pictures: int = 32
    """Pictures to compare on, evenly spread over the split."""
    end_to_end: bool = False
    """Take uint8 RGB pixels and give probabilities and classes; otherwise normalised pictures and logits."""
    dynamic_size: bool = False
    """Take any height and width that are multiples of 32, from 64 on; otherwise only the size of the training."""

    def __post_init__(self) -> None:
        if self.out.suffix not in FORMATS:
            raise ValueError(f"--out {self.out}: its name must end in .onnx or .pt2, or have no suffix for a folder")
        if self.pictures < 1:
            raise ValueError(f"--pictures {self.pictures}: must be at least 1")
        if not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: there is no folder {self.out.absolute().parent}")
        if not self.out.suffix and (self.end_to_end or self.dynamic_size or self.shards):
            raise ValueError(f"--out {self.out}: a folder for the hub takes no other flags than --weights")


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    from petseg.inference.exported.hub import write_hub_folder  # torch takes seconds: imported once the flags are right
    from petseg.inference.exported.program import Form
    from petseg.inference.exported.write import write_onnx, write_torch
    from petseg.inference.weights_file import load_model

    console = Terminal()
    header, model = load_model(command.weights)
    if not command.out.suffix:
        write_hub_folder(command.weights, header, command.out)
        console.print(f"{command.out}: model.safetensors, config.json, README.md", soft_wrap=True, highlight=False)
        return OK
    form = Form("pixels" if command.end_to_end else "logits", command.dynamic_size)
    write = write_onnx if command.out.suffix == ".onnx" else write_torch
    agreement = write(model, header, form, samples_of(command, header), command.out)
    for line in [*agreement.lines(), f"{command.out}: {command.out.stat().st_size / 1e6:.2f} MB"]:
        console.print(line, soft_wrap=True, highlight=False)
    return OK


def samples_of(command: Command, header: Header) -> Samples:
    from petseg.inference.samples import drawn_samples, read_samples

    if command.shards:
        return read_samples(header, command.shards, command.split, command.pictures)
    return drawn_samples(header, command.pictures)


if __name__ == "__main__":
    sys.exit(run_command(main))
