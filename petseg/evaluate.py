"""Measure a model on a split: Dice and IoU per picture and over the whole split.

python -m petseg.evaluate runs/lab/trials/0123456789 --split test
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from petseg.checkpoint import Checkpoint, list_checkpoints, load_weights
from petseg.config import config_from_dict, with_values
from petseg.data.inputs import IGNORE_INDEX
from petseg.data.ledger import Ledger
from petseg.data.store import open_store
from petseg.metrics import PerImage, count_pixels
from petseg.overlay import Pixels, draw_overlay, draw_sheet, save_image
from petseg.run import Run, build_run
from petseg.run_folder import CHECKPOINTS_NAME, load_config
from shards.command import OK, run_command
from shards.manifest import write_whole

logger = logging.getLogger(__name__)


@torch.no_grad()
def measure(run: Run, split: str) -> PerImage:
    """Loss and pixel counts of each picture of a split, the same on every rank; each picture is seen exactly once.

    Ranks work alone and meet once at the end, so an uneven share cannot hang. Raises Failure, on all ranks, if a
    picture cannot be read or is missing from what the ranks bring together.
    """
    run.bare_model.eval()
    rows = [torch.zeros((0, 5), dtype=torch.float64, device=run.accelerator.device)]
    ledger = Ledger()
    for batch in run.eval_batches(split):
        ledger.add(batch)
        image, target = run.inputs(batch)
        with run.accelerator.autocast():
            logits = run.bare_model(image)  # (B, 2, H, W)
        columns = [torch.from_numpy(batch.plan.ids).to(image.device), run.loss(logits, target)]
        counts = count_pixels(logits, target)
        rows.append(torch.cat([torch.stack([c.double() for c in columns], dim=1), counts.double()], dim=1))
    count = ledger.gather(run.accelerator)
    if count.lost:
        raise ledger.failure(split, budget=0)
    count.check(run.manifest.splits[split], split)
    return collect(run, split, torch.cat(rows))


def collect(run: Run, split: str, rows: torch.Tensor) -> PerImage:
    """Bring together (n, 5) rows of [position, loss, tp, fp, fn] of all ranks, in the order of the split."""
    padded = run.accelerator.pad_across_processes(rows, dim=0, pad_index=-1)
    table = run.accelerator.gather(padded).cpu().numpy()
    table = table[table[:, 0] >= 0]
    table = table[np.argsort(table[:, 0], kind="stable")]
    assert np.array_equal(table[:, 0], np.arange(run.manifest.splits[split].num_samples))  # the ledger has proven it
    return PerImage(table[:, 1], table[:, 2:].astype(np.int64), run.config.data.image_size_px**2)


@dataclass(frozen=True)
class Picture:
    """A picture with its masks, for eyes."""

    key: str
    image: Pixels  # (H, W, 3) uint8
    truth: Pixels  # (H, W) uint8: 1 pet, 0 background, 255 ignored
    prediction: Pixels  # (H, W) uint8: 1 pet, 0 background

    def overlay(self) -> Pixels:
        return draw_overlay(self.image, self.truth == 1, (self.prediction == 1) & (self.truth != IGNORE_INDEX))


@torch.no_grad()
def predict(run: Run, split: str, positions: Sequence[int]) -> list[Picture]:
    """The model's masks of some pictures of a split."""
    run.bare_model.eval()
    pictures = []
    for position, batch in zip(positions, run.batches_of(split, positions), strict=True):
        image, target = run.inputs(batch)
        with run.accelerator.autocast():
            prediction = run.bare_model(image).argmax(dim=1)
        truth, predicted = (mask[0].cpu().numpy().astype(np.uint8) for mask in (target, prediction))
        key, pixels = run.splits[split].key(position), batch.image[0].cpu().numpy()
        pictures.append(Picture(key, pixels, truth, predicted))
    return pictures


@dataclass(frozen=True)
class Command:
    """Measure a run's best weights on a split, and draw the best, median and worst pictures."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    split: Literal["train", "val", "test"] = "test"
    shards: str = ""
    """Folder of the shard set, if it is not where it was during training."""
    weights: Literal["best", "last"] = "best"
    """Which checkpoint: the best validation Dice, or the last epoch."""
    pictures: int = 4
    """How many of the best, of the median and of the worst pictures are drawn."""


def main(argv: Sequence[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, description=__doc__)
    stored = load_config(command.run)
    config = config_from_dict(stored["config"])
    if command.shards:
        config = with_values(config, {"data.shards": command.shards})
    store = open_store(config.data.shards, config.data.cache_dir, config.data.cache_gb)
    manifest = store.manifest
    trained_on = stored["identity"]["manifest_hash"]
    if manifest.hash != trained_on:
        logger.warning(
            "%s is another shard set (%.10s) than the run saw (%.10s)",
            config.data.shards,
            manifest.hash,
            trained_on,
        )
    run = build_run(config, store, command.run, splits=(command.split,))
    checkpoint = choose_checkpoint(command.run, command.weights)
    load_weights(checkpoint.folder, run.bare_model)
    per_image = measure(run, command.split)
    if run.accelerator.is_main_process:
        report(run, command, checkpoint, per_image)
    run.close()
    return OK


def choose_checkpoint(folder: Path, weights: str) -> Checkpoint:
    checkpoints = list_checkpoints(folder / CHECKPOINTS_NAME)
    if not checkpoints:
        raise ValueError(f"{folder} has no checkpoint yet: train first, or wait for its first epoch")
    if weights == "last":
        return checkpoints[-1]
    best_step = checkpoints[-1].state["best"]["step"]
    return next(c for c in checkpoints if c.step == best_step)


def report(run: Run, command: Command, checkpoint: Checkpoint, per_image: PerImage) -> None:
    """A table on the terminal, evaluate-SPLIT.json and evaluate-SPLIT.png in the run's folder."""
    split, config = command.split, run.config
    protocol = f"border={config.data.border}, {config.data.image_size_px} px, {len(per_image.loss)} pictures"
    metrics = per_image.summary(split) | {f"{split}/all_pet_dice": per_image.all_pet_dice()}
    keys = [run.splits[split].key(i) for i in range(len(per_image.loss))]
    write_whole(
        command.run / f"evaluate-{split}.json",
        json.dumps(
            {
                "protocol": protocol,
                "manifest_hash": run.manifest.hash,
                "checkpoint": checkpoint.folder.name,
                "metrics": metrics,
                "dice": dict(zip(keys, per_image.dice.tolist(), strict=True)),
            },
            indent=2,
        )
        + "\n",
    )
    sheet_path = command.run / f"evaluate-{split}.png"
    save_image(draw_extremes(run, split, per_image, command.pictures), sheet_path)
    table = Table("", "per picture", "data set", title=f"{split}: {protocol}", title_justify="left")
    for name in ("dice", "iou"):
        table.add_row(
            name.replace("iou", "IoU").replace("dice", "Dice"),
            f"{metrics[f'{split}/{name}']:.4f}",
            f"{metrics[f'{split}/{name}_dataset']:.4f}",
        )
    table.add_row("Dice, all called pet", f"{metrics[f'{split}/all_pet_dice']:.4f}", "")
    Console().print(table)
    Console().print(f"best, median and worst pictures: {sheet_path}", soft_wrap=True)


def draw_extremes(run: Run, split: str, per_image: PerImage, count: int) -> Image.Image:
    """A sheet with rows of the best, the median and the worst pictures by Dice."""
    order = np.argsort(-per_image.dice, kind="stable")
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    chosen = np.concatenate([order[:count], order[middle : middle + count], order[len(order) - count :]])
    pictures = predict(run, split, [int(i) for i in chosen])
    captions = (f"{picture.key} {per_image.dice[i]:.3f}" for picture, i in zip(pictures, chosen, strict=True))
    return draw_sheet([(c, p.overlay()) for c, p in zip(captions, pictures, strict=True)], columns=count)


if __name__ == "__main__":
    sys.exit(run_command(main))
