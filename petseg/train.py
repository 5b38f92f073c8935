"""Train one model on a shard set. The same command resumes an interrupted run, or says that it is finished.

python petseg/train.py --data.shards data/shards --model.arch resnet34_unet --train.epochs 20
python petseg/train.py --recipe fast --data.shards data/shards --model.arch resnet34_unet
accelerate launch --config_file slurm/accelerate/eight_gpu.yaml petseg/train.py --train.mixed-precision bf16
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from petseg.data.consent import remember
from petseg.run_folder.attempts import ATTEMPTS_NAME
from petseg.run_folder.new_folder import missing_folders, removed_unless_started
from petseg.run_folder.single_run import Command, parse_command
from petseg.training import interrupt
from shards.command import OK, run_command
from shards.terminal import Terminal

if TYPE_CHECKING:
    from petseg.run_folder.layout import Result


def main(argv: Sequence[str] | None = None) -> int:
    command: Command = parse_command(argv, __doc__)
    interrupt.install()
    from accelerate.state import PartialState  # torch takes seconds: imported once the flags are right

    from petseg.training.loop import Terms, train

    remember([command.run.data.shards])
    folder = command.folder()
    with removed_unless_started(missing_folders(folder), lambda error: (folder / ATTEMPTS_NAME).exists()):
        result = train(command.run, folder, Terms(world_size=command.world_size))
    if PartialState().is_main_process:
        show_result(result, folder)
    return OK


def show_result(result: Result, folder: Path) -> None:
    from rich.table import Table

    console = Terminal(soft_wrap=True)
    console.print(f"{folder}\nbest weights: epoch {result.best_epoch} of {result.epochs}", highlight=False)
    table = Table()
    for column in ("split", "Dice", "IoU", "Dice, data set", "IoU, data set", "loss", "one class everywhere"):
        table.add_column(column, justify="left" if column == "split" else "right")
    fields = ("dice", "iou", "dice_dataset", "iou_dataset", "loss")
    for split in ("val", "test"):
        if f"{split}/dice" in result.metrics:
            numbers = [*(result.metrics[f"{split}/{field}"] for field in fields), result.floor(split)]
            table.add_row(split, *("" if number is None else f"{number:.4f}" for number in numbers))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main))
