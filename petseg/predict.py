"""Predict the masks of pictures with a weights file (petseg.best).

python -m petseg.predict photos/ --weights winner.safetensors --out masks
python -m petseg.predict 'photos/**/*.jpg' --weights winner.safetensors --out all --overlays --cutouts --coco
accelerate launch --config_file slurm/accelerate/eight_gpu.yaml petseg/predict.py photos \\
    --weights winner.safetensors --out masks

The same command again does only what is missing. Exit code 1: some pictures could not be read; they are listed.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from petseg.inference.many.wanted import Wanted, identity
from shards.command import OK, run_command
from shards.command.flags import parse
from shards.terminal import Terminal, progress

if TYPE_CHECKING:
    from petseg.inference.many.inputs import Input
    from petseg.inference.many.outputs import OutputFolder, Row
    from petseg.inference.many.processes import Processes

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
    wanted: Annotated[Wanted, tyro.conf.arg(name="")] = field(default_factory=Wanted)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    if not command.paths or not command.weights:
        raise ValueError("name the pictures, or a folder with them, before --weights, and one file or more after it")
    from petseg.inference.many.inputs import list_inputs  # torch takes seconds: imported once the flags are right
    from petseg.inference.many.outputs import Journal, OutputFolder, write_summary
    from petseg.inference.many.processes import meet, part
    from petseg.inference.predictor import read_file_header

    output = OutputFolder(command.out, command.wanted.kinds, command.wanted.segmentation)
    header = read_file_header(command.weights[0])
    processes = meet()
    with ExitStack() as stack:
        stack.callback(part, processes)

        def planned() -> tuple[list[Input], list[Input]]:
            asked = identity(command.wanted, command.weights, command.paths)
            items = list_inputs(command.paths, sys.stdin, command.out)
            stack.enter_context(output.locked())
            output.claim(asked)
            output.remove_half_written()
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


def predict(command: Command, output: OutputFolder, items: Sequence[Input], processes: Processes) -> None:
    """Predict this process's share."""
    from petseg.inference.many.work import Work
    from petseg.inference.predictor import Options, load_predictor

    wanted = command.wanted
    predictor = load_predictor(command.weights, processes.device(wanted.device), wanted.precision)
    options = Options(wanted.tta, wanted.keep_largest, wanted.min_area_px, wanted.batch_size)
    work = Work(predictor, options, output, wanted.batch_size, wanted.threads, processes.rank)
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


if __name__ == "__main__":
    sys.exit(run_command(main))
