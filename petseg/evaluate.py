"""Measure a model on a split: Dice, IoU, outlines and calibration, together with the protocol of the numbers.

python -m petseg.evaluate runs/single/unet-none-0123456789 --split test
"""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from petseg.config import DataConfig, RunConfig
from petseg.config.marks import is_target_file
from petseg.config.values import config_from_dict, with_values
from petseg.data.consent import remember, require_known
from petseg.data.store import open_store
from petseg.metrics import BOUNDARY_RATIO, Tta
from petseg.run_folder.layout import CONFIG_NAME, load_config
from petseg.targets import TARGET_NAME
from shards.command import OK, run_command
from shards.command.flags import parse
from shards.files import require_own_folder
from shards.terminal import Terminal

if TYPE_CHECKING:
    from PIL import Image

    from petseg.evaluation.protocol import Protocol
    from petseg.metrics.pixels import PerImage
    from petseg.run.parts import Parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """Measure a run's best weights on a split by every rule of its target, at the network's size and at native size,
    and draw the best, median and worst pictures."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    split: Literal["train", "val", "test"] = "test"
    shards: str = ""
    """The shard set, if it has moved since the training: a folder, an address or a command, as data.shards."""
    allow_pipe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fetch the shards from the address, or by the command, in the run's config.json although you have never named it
    yourself: it could be a stranger's."""
    cache_dir: str = ""
    """Local folder for decoded samples and staged shards, as data.cache_dir; the one in the run's config.json is not
    used, since it could be a stranger's."""
    weights: Literal["best", "last"] = "best"
    """Which checkpoint: the best validation Dice, or the last epoch."""
    pictures: int = 4
    """Number of pictures to draw of the best, of the median and of the worst ones."""
    tta: Tta = "none"
    """Average the probabilities of several views: the picture and its mirror image, three scales (0.75, 1, 1.25), or
    all six."""
    keep_largest: bool = False
    """Keep only the largest connected part of each predicted mask: stray blobs go, and so does all but
    one of several objects of a class."""
    native: bool = True
    """Measure at native resolution too, if the shard set holds the original pictures."""
    boundary_ratio: float = BOUNDARY_RATIO
    """Width of the band along outlines that boundary IoU compares, as a share of the picture's diagonal."""
    wandb: Literal["as_trained", "online", "offline", "disabled"] = "as_trained"
    """Show the numbers in wandb too, as a run of job type eval beside the training's; by default as the training did.
    Repeating an evaluation updates its run."""

    def __post_init__(self) -> None:
        if not 0 < self.boundary_ratio <= 1:
            raise ValueError(f"--boundary-ratio {self.boundary_ratio}: must lie in (0, 1]")
        if self.pictures < 1:
            raise ValueError(f"--pictures {self.pictures}: must be at least 1")


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    stored = load_config(command.run, identified=True)
    require_own_folder(command.run)
    require_own_folder(command.run / "wandb")
    config = config_to_measure(config_from_dict(stored["config"]), command)
    evaluate(command, config, stored["identity"].get("manifest_hash", ""))
    return OK


def evaluate(command: Command, config: RunConfig, trained_on: str) -> None:
    """Measure, draw and report. trained_on: hash of the shard set that the run was trained on"""
    from petseg.evaluation.protocol import Protocol, calibrate, measure_protocol, why_not_native  # torch takes seconds
    from petseg.evaluation.report import Evaluated, report
    from petseg.metrics.overlay import save_image
    from petseg.run.parts import build_parts
    from petseg.run.peers import lost_peers_raise
    from petseg.run_folder.checkpoint import choose_checkpoint
    from petseg.run_folder.restore import load_weights
    from petseg.tracking.evaluation import track_evaluation

    store = open_store(config.data.shards, config.data.cache_dir, config.data.cache_gb)
    manifest = store.manifest
    if manifest.hash != trained_on:
        words = "%s is another shard set (%.10s) than the run saw (%.10s)"
        logger.warning(words, config.data.shards, manifest.hash, trained_on)
    with_val = command.split != "val" and "val" in manifest.splits
    parts = build_parts(config, store, command.run, splits=(command.split, "val") if with_val else (command.split,))
    checkpoint = choose_checkpoint(command.run, command.weights)
    load_weights(checkpoint.folder, parts.bare_model)
    no_native = why_not_native(manifest) if command.native else "not asked for"
    protocol = Protocol(
        command.tta,
        native=not no_native,
        boundary_ratio=command.boundary_ratio,
        keep_largest=command.keep_largest,
    )
    temperature = None
    with lost_peers_raise():
        measured = measure_protocol(parts, command.split, protocol)
        if command.split == "val" or with_val:
            on_val = calibrate(parts, "val", command.tta) if with_val else measured.calibration
            temperature = on_val.fit_temperature()
    if parts.is_main:
        sheet_path = command.run / f"evaluate-{command.split}.png"
        save_image(draw_extremes(parts, measured.per_image, command, protocol), sheet_path)
        done = Evaluated(
            command.split, command.weights, checkpoint.folder.name, protocol, no_native, measured, temperature
        )
        content = report(parts, done)
        Terminal().print(f"best, median and worst pictures: {sheet_path}", soft_wrap=True)
        mode = config.tracking.wandb if command.wandb == "as_trained" else command.wandb
        if mode != "disabled":
            track_evaluation(command.run, config, content, mode)
    parts.close()


def config_to_measure(trained: RunConfig, command: Command) -> RunConfig:
    """The run's config with this user's locations: those in a config.json must not be read, written to or fetched from.

    Raises ValueError for a shard set that would be fetched although the user has not named it, and for a run that names
    a file of classes and has not kept them.
    """
    if is_target_file(trained.data.target) and not (command.run / TARGET_NAME).exists():
        raise ValueError(f"{command.run} lacks {TARGET_NAME}, in which a run with a data.target of its own keeps it")
    if not (command.shards or command.allow_pipe):
        remedy = "name them by --shards, or "
        require_known(trained.data.shards, f"{command.run / CONFIG_NAME}", remedy)
    shards = command.shards or trained.data.shards
    remember([shards])
    own = {"data.shards": shards, "data.cache_dir": command.cache_dir, "data.cache_gb": DataConfig().cache_gb}
    return with_values(trained, own)


def draw_extremes(parts: Parts, per_image: PerImage, command: Command, protocol: Protocol) -> Image.Image:
    """A sheet with rows of the best, the median and the worst pictures by Dice."""
    import numpy as np

    from petseg.evaluation.measure import predict
    from petseg.metrics.overlay import draw_sheet

    order = np.argsort(-per_image.dice, kind="stable")
    count = min(command.pictures, len(order))
    middle = (len(order) - count) // 2
    chosen = np.concatenate([order[:count], order[middle : middle + count], order[len(order) - count :]])
    pictures = predict(parts, command.split, [int(i) for i in chosen], protocol)
    captions = (f"{picture.key} {per_image.dice[i]:.3f}" for picture, i in zip(pictures, chosen, strict=True))
    return draw_sheet([(c, p.overlay()) for c, p in zip(captions, pictures, strict=True)], columns=count)


if __name__ == "__main__":
    sys.exit(run_command(main))
