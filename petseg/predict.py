"""Predict the masks of pictures with a weights file (petseg.best).

python -m petseg.predict photos/ --weights winner.safetensors --out masks
python -m petseg.predict 'photos/**/*.jpg' --weights winner.safetensors --out all --overlays --cutouts --coco
accelerate launch --config_file slurm/accelerate/eight_gpu.yaml petseg/predict.py photos \\
    --weights winner.safetensors --out masks

The same command again does only what is missing. Exit code 1: some pictures could not be read; they are listed.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from petseg.metrics import Tta
from shards.command import OK, parse, run_command
from shards.files import NotRegular, open_regular
from shards.terminal import Terminal, progress

if TYPE_CHECKING:
    from petseg.inference.inputs import Input
    from petseg.inference.outputs import OutputFolder, Row
    from petseg.inference.processes import Processes

SOME_BAD = 1  # exit code: some pictures could not be read
LISTED = 20  # of them on the terminal; summary.csv has all


@dataclass(frozen=True)
class Command:
    """Predict the masks of pictures."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Pictures, folders (with all folders in them), quoted patterns such as 'photos/**/*.jpg', shards (.tar) or folders
    of shard sets, and - for a list of paths on standard input."""
    weights: tuple[Path, ...]
    """The weights file; of several, the class probabilities are averaged."""
    out: Path
    """Folder for the masks and what else is asked for."""
    probabilities: bool = False
    """Write the probabilities of all classes too, as .npz."""
    overlays: bool = False
    """Write the pictures tinted in the colours of their classes."""
    cutouts: bool = False
    """Write the pictures with a transparent background."""
    coco: bool = False
    """Write coco.json: an annotation per picture and class, with run lengths."""
    tta: Tta = "none"
    """Average the probabilities of several views: the picture and its mirror image, three scales, or all six."""
    keep_largest: bool = False
    """Keep only the largest connected part of each class."""
    min_area_px: int = 0
    """Connected parts of fewer pixels become background."""
    precision: Literal["as_trained", "no", "bf16", "fp16"] = "as_trained"
    """Mixed precision of the network."""
    device: str = "auto"
    """auto = a GPU for each process if there are any, or a name of torch such as cpu or cuda:1."""
    batch_size: int = 8
    """Pictures, or windows, that go through the network together."""
    threads: int = 2
    """Threads per process that read and write pictures."""

    def __post_init__(self) -> None:
        for name, least in (("min_area_px", 0), ("batch_size", 1), ("threads", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)}: must be at least {least}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The folders of the outputs."""
        return ("masks", *(name for name in ("probabilities", "overlays", "cutouts") if getattr(self, name)))

    def identity(self) -> dict[str, Any]:
        """All that the outputs depend on."""
        return {
            "format_version": 1,
            "weights": [sha256_of(path) for path in self.weights],
            "paths": [one if one == "-" else os.path.abspath(one) for one in self.paths],  # noqa: PTH100 - keeps links
            **{name: getattr(self, name) for name in ("tta", "keep_largest", "min_area_px", "precision", "coco")},
            "kinds": list(self.kinds),
        }


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if not command.paths or not command.weights:
        raise ValueError("name the pictures, or a folder with them, before --weights, and one file or more after it")
    from petseg.inference.inputs import list_inputs  # torch takes seconds: imported once the flags are right
    from petseg.inference.outputs import Journal, OutputFolder, write_summary
    from petseg.inference.predictor import read_file_header
    from petseg.inference.processes import meet, part

    output = OutputFolder(command.out, command.kinds, command.coco)
    header = read_file_header(command.weights[0])
    processes = meet()
    try:

        def planned() -> tuple[list[Input], list[Input]]:
            identity = command.identity()
            items = list_inputs(command.paths, sys.stdin, command.out)
            output.claim(identity)
            journal = Journal(command.out)
            return items, [item for item in items if not output.is_done(journal.row(item.name))]

        items, missing = processes.from_first(planned)
        if own := processes.share(missing):
            predict(command, output, own, processes)
        processes.wait()
        bad = processes.from_first(lambda: write_summary(output, items, header))
        if processes.rank == 0:
            report(command, len(items), len(missing), bad)
        return SOME_BAD if bad else OK
    finally:
        part(processes)


def predict(command: Command, output: OutputFolder, items: Sequence[Input], processes: Processes) -> None:
    """Predict this process's share."""
    from petseg.inference.predictor import Options, load_predictor
    from petseg.inference.work import Work

    predictor = load_predictor(command.weights, processes.device(command.device), command.precision)
    options = Options(command.tta, command.keep_largest, command.min_area_px, command.batch_size)
    work = Work(predictor, options, output, command.batch_size, command.threads, processes.rank)
    with progress("predicted", len(items)) as advance:
        work.run(items, advance if processes.rank == 0 else lambda _: None)


def report(command: Command, num_items: int, num_missing: int, bad: Sequence[Row]) -> None:
    console = Terminal()
    before = f", {num_items - num_missing} of them before" if num_items > num_missing else ""
    console.print(f"{num_items - len(bad)} pictures in {command.out}{before}", soft_wrap=True, highlight=False)
    for row in bad[:LISTED]:
        console.print(f"not read: {row.path}: {row.error}", soft_wrap=True, highlight=False)
    if len(bad) > LISTED:
        console.print(f"and {len(bad) - LISTED} more, listed in {command.out / 'summary.csv'}", soft_wrap=True)


def sha256_of(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotRegular) as error:
        raise ValueError(f"--weights {path}: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
