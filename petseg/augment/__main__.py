"""A sheet of pictures before and after augmentation, with the outlines of their masks: look before you train.

python -m petseg.augment --shards data/shards --policy strong --out sheet.png
"""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[2]}/shards/preamble.py")

import tyro

from petseg.config import AugmentConfig, DataConfig
from petseg.config.sizes import Fit, ImageSize, size_of
from shards.cause import Cause
from shards.command import OK, Failure, run_command
from shards.command.flags import parse

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from petseg.data.plan import Ids
    from petseg.data.store import Store
    from petseg.data.tars import TarReader
    from petseg.data.whole.crops import CropReader
    from petseg.metrics.overlay import Pixels
    from petseg.targets.target import Target

    Pair = tuple[Pixels, Pixels]  # (B, H, W, 3) pictures and (B, H, W) labels, uint8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """Draw pictures before and after augmentation. Each picture is changed, whatever p says."""

    augment: Annotated[AugmentConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: AugmentConfig(policy="strong")
    )
    shards: str = "data/shards"
    """The shard set, as data.shards of a run."""
    split: Literal["train", "val", "test"] = "train"
    out: Path = Path("augment.png")
    """Where the sheet goes; the suffix says the format."""
    pictures: int = 6
    """Rows of the sheet: pictures, evenly spread over the split."""
    epochs: int = 5
    """Columns after the first: how each picture looks in so many epochs."""
    seed: int = 0
    """Seed of the draws."""
    image_size_px: ImageSize = 256
    """Size at which pictures are changed, as data.image_size_px of a run."""
    fit: Fit = "squash"
    """How pictures come to this size, as data.fit of a run. With crop, the first column shows the whole picture, and
    the others the crops that a run with this seed cuts."""
    rare_crops: float = 0.0
    """Share of the crops that are placed on one of the picture's classes, as data.rare_crops of a run."""

    def __post_init__(self) -> None:
        for name in ("pictures", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} = {getattr(self, name)}: must be at least 1")
        if min(size_of(self.image_size_px)) < 1:
            raise ValueError(f"--image-size-px = {self.image_size_px}: must be at least 1")
        if not 0 <= self.rare_crops <= (self.fit == "crop"):
            raise ValueError(f"--rare-crops {self.rare_crops}: must lie in [0, 1], and needs --fit crop")


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    from petseg.metrics.overlay import picture_format, save_image

    picture_format(command.out)  # a wrong suffix is told before pictures are drawn
    save_image(draw_changes(command), command.out)
    logger.info("%s: %s, each picture as it is and in %d epochs", command.out, command.augment.policy, command.epochs)
    return OK


def draw_changes(command: Command) -> Image.Image:
    """A row for each picture: itself, then its changes. Raises Failure if one cannot be read."""
    import numpy as np

    from petseg.augment.batch import apply
    from petseg.augment.draws import draw
    from petseg.data.store import open_store
    from petseg.metrics.overlay import draw_sheet
    from petseg.targets.target import resolve_target

    with closing(open_store(command.shards)) as store:
        if command.split not in store.manifest.splits:
            known = ", ".join(store.manifest.splits)
            raise ValueError(f"{command.shards} has no split {command.split}: it has {known}")
        target = resolve_target(DataConfig(shards=command.shards), store)
        number = store.manifest.splits[command.split].num_samples
        ids = np.linspace(0, number - 1, min(command.pictures, number)).astype(np.int64)
        captions, originals = read_pictures(command, store, ids)
        epochs = range(1, command.epochs + 1)
        inputs = [read_crops(command, store, ids, epoch) if command.fit == "crop" else originals for epoch in epochs]
    always = replace(command.augment, p=1.0, strong_p=1.0)
    columns = [(captions, *as_tensors(originals, target))]
    for epoch, pixels in zip(epochs, inputs, strict=True):
        changes = draw(always, ids, command.seed, epoch, pixels[1].shape[1:])
        columns.append(([f"epoch {epoch}"] * len(ids), *apply(changes, *as_tensors(pixels, target), always)))
    cells = []
    for row in range(len(ids)):
        for words, pictures, masks in columns:
            rgb = pictures[row].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
            cells.append((words[row], outlined(rgb, masks[row].numpy(), target)))
    return draw_sheet(cells, columns=len(columns), size_px=min(max(originals[1].shape[1:]), 256))


def read_pictures(command: Command, store: Store, ids: Ids) -> tuple[list[str], Pair]:
    """The keys and the whole pictures; with crops, letterboxed, as crops have pictures of any shape."""
    from petseg.data.tars import TarReader

    fit = "letterbox" if command.fit == "crop" else command.fit
    with closing(TarReader(store, command.split, command.image_size_px, fit)) as reader:
        return [reader.key(int(one)) for one in ids], _load(reader, ids)


def read_crops(command: Command, store: Store, ids: Ids, epoch: int) -> Pair:
    """The crops that a run with this seed cuts in an epoch."""
    from petseg.data.tars import TarReader
    from petseg.data.whole.crops import CropReader, Crops

    with closing(TarReader(store, command.split, command.image_size_px, "crop")) as reader:
        crops = Crops(reader.size_px, command.seed, epoch, command.rare_crops)
        return _load(CropReader(reader, crops), ids)


def _load(reader: TarReader | CropReader, ids: Ids) -> Pair:
    import numpy as np

    image = np.empty((len(ids), *reader.size_px, 3), np.uint8)
    labels = np.empty((len(ids), *reader.size_px), np.uint8)
    loaded = reader.load(ids, image, labels)
    if loaded.lost:
        raise Failure(f"cannot be read: {loaded.lost[0]}", Cause.DATA)
    return image, labels


def as_tensors(pixels: Pair, target: Target) -> tuple[Tensor, Tensor]:
    """What augmentation takes: (B, 3, H, W) float32 in [0, 255], and (B, H, W) classes."""
    import torch  # which takes seconds: only for words that are right

    from petseg.data.inputs import to_classes, to_image

    image, labels = (torch.from_numpy(array) for array in pixels)
    return to_image(image, torch.device("cpu")), to_classes(labels, torch.from_numpy(target.table[:1]))


def outlined(pixels: Pixels, classes: Pixels, target: Target) -> Pixels:
    """(H, W, 3) and (H, W) uint8 -> the picture, with each class but the background outlined in its colour."""
    from petseg.metrics.overlay import outline

    drawn = pixels.copy()
    for value in target.counted:
        drawn[outline(classes == value)] = target.classes[value].colour
    return drawn


if __name__ == "__main__":
    sys.exit(run_command(main))
