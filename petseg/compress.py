"""Make a model smaller and faster, and measure models beside each other.

python -m petseg.compress int8 --weights winner.safetensors --shards data/shards --out winner.int8.onnx
python -m petseg.compress prune --weights winner.safetensors --keep 0.5 --out pruned.safetensors
python -m petseg.compress measure --weights winner.safetensors winner.int8.onnx --shards data/shards --split test

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
from typing import TYPE_CHECKING, Any, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from shards.command import OK, run_command
from shards.command.flags import parse
from shards.terminal import Terminal

if TYPE_CHECKING:
    from rich.table import Table

    from petseg.inference.point_files import Points


@dataclass(frozen=True)
class Int8:
    """Quantise a weights file to int8, calibrated on validation pictures, and write an ONNX file."""

    weights: Path
    """The weights file."""
    shards: str
    """The shard set whose val split calibrates the ranges of activations."""
    out: Path
    """The file, .onnx."""
    pictures: int = 128
    """Pictures to calibrate on, evenly spread over val."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".onnx":
            raise ValueError(f"--out {self.out}: its name must end in .onnx")
        if not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: there is no folder {self.out.absolute().parent}")
        if self.pictures < 1:
            raise ValueError(f"--pictures {self.pictures}: must be at least 1")


@dataclass(frozen=True)
class Prune:
    """Remove whole channels of unet or resnet34_unet: the same architecture at a smaller width."""

    weights: Path
    """The weights file, of a single network."""
    out: Path
    """The file to write, .safetensors."""
    keep: float = 0.5
    """Share of the width that is kept; a half leaves about a quarter of the parameters."""


@dataclass(frozen=True)
class Measure:
    """Measure models by one protocol, in one run, on this machine's CPU: Dice, size, speed and memory."""

    weights: tuple[Path, ...]
    """Weights files and ONNX files of petseg.export; differences are to the first."""
    shards: str
    """The shard set."""
    split: Literal["train", "val", "test"] = "val"
    """What Dice is measured on."""
    repeats: int = 9
    """Repeats of the timing, in which the models take turns; medians are shown."""
    out: Path | None = None
    """Write the numbers to this file too, as JSON; the report of a sweep shows those in runs/NAME/points."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"--repeats {self.repeats}: must be at least 1")
        if self.out and self.out.suffix != ".json":
            raise ValueError(f"--out {self.out}: its name must end in .json")


def main(argv: Sequence[str] | None = None) -> int:
    command: Any = parse(Int8 | Prune | Measure, argv, __doc__)
    if isinstance(command, Int8):
        return quantise(command)
    if isinstance(command, Prune):
        return cut_channels(command)
    if not command.weights:
        raise ValueError("name the models with --weights")
    if command.out and not (folder := command.out.absolute().parent.parent).is_dir():  # its own folder is made
        raise ValueError(f"--out {command.out}: there is no folder {folder}")
    from petseg.inference.point_files import write_points
    from petseg.inference.points import measure_points
    from petseg.inference.scores import Measurement

    points = measure_points(command.weights, Measurement(command.shards, command.split, "none"), command.repeats)
    if command.out:
        write_points(points, command.out)
    Terminal().print(table_of(points))
    return OK


def quantise(command: Int8) -> int:
    from petseg.inference.exported.int8 import write_int8  # torch takes seconds: imported once the flags are right
    from petseg.inference.samples import read_samples
    from petseg.inference.weights_file import load_model

    header, model = load_model(command.weights)
    samples = read_samples(header, command.shards, "val", command.pictures)
    agreement = write_int8(model, header, samples, command.out)
    before, after = (path.stat().st_size / 1e6 for path in (command.weights, command.out))
    for line in [*agreement.lines(), f"{command.out}: {after:.2f} MB, {after / before:.2f} of {command.weights.name}"]:
        Terminal().print(line, soft_wrap=True, highlight=False)
    return OK


def cut_channels(command: Prune) -> int:
    from petseg.inference.prune import prune  # torch takes seconds: imported once the flags are right

    pruned = prune(command.weights, command.keep, command.out)
    width = pruned.header.models[0].width
    for line in (f"{pruned}", f"train it further: --model.width {width} --model.init {command.out}", f"{command.out}"):
        Terminal().print(line, soft_wrap=True, highlight=False)
    return OK


def table_of(points: Points) -> Table:
    from rich.table import Table

    place = f"{points.device}, {points.threads} threads"
    table = Table(title=f"{points.split}, {points.protocol}; {place}", title_justify="left")
    for name in ("model", "Dice", "minus the first", "MB", "parameters", "ms a picture", "pictures/s", "peak MB"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for one in points.points:
        ends = one.dice_interval_95
        table.add_row(
            one.name,
            f"{one.dice:.4f}" + (f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else ""),
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*one.difference_to_first) if one.difference_to_first else "",
            f"{one.file_mb:.2f}",
            f"{one.parameters:,}",
            f"{one.speed.latency_ms:.1f}",
            f"{one.speed.images_per_s:.1f}",
            f"{one.peak_memory_mb:.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
