"""A sheet of pictures before and after augmentation, with the outlines of their masks: look before you train.

python -m petseg.augment --shards data/shards --policy strong --out sheet.png
"""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[2]}/shards/preamble.py")

import tyro

from petseg.config import AugmentConfig, DataConfig
from petseg.config.sizes import ImageSize, size_of
from shards.cause import Cause
from shards.command import OK, Failure, parse, run_command

if TYPE_CHECKING:
    from PIL import Image

    from petseg.metrics.overlay import Pixels
    from petseg.targets.target import Target

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

    def __post_init__(self) -> None:
        for name in ("pictures", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} = {getattr(self, name)}: must be at least 1")
        if min(size_of(self.image_size_px)) < 1:
            raise ValueError(f"--image-size-px = {self.image_size_px}: must be at least 1")


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, argv, __doc__)
    from petseg.metrics.overlay import save_image

    save_image(draw_changes(command), command.out)
    logger.info("%s: %s, each picture as it is and in %d epochs", command.out, command.augment.policy, command.epochs)
    return OK


def draw_changes(command: Command) -> Image.Image:
    """A row for each picture: itself, then its changes. Raises Failure if one cannot be read."""
    import numpy as np
    import torch  # which takes seconds: only for words that are right

    from petseg.augment.batch import apply
    from petseg.augment.draws import draw
    from petseg.data.inputs import to_classes, to_image
    from petseg.data.store import open_store
    from petseg.data.tars import TarReader
    from petseg.metrics.overlay import draw_sheet
    from petseg.targets.target import resolve_target

    store = open_store(command.shards)
    if command.split not in store.manifest.splits:
        raise ValueError(f"{command.shards} has no split {command.split}: it has {', '.join(store.manifest.splits)}")
    target = resolve_target(DataConfig(shards=command.shards), store)
    reader = TarReader(store, command.split, command.image_size_px)
    size = reader.size_px
    ids = np.linspace(0, len(reader) - 1, min(command.pictures, len(reader))).astype(np.int64)
    image, labels = np.empty((len(ids), *size, 3), np.uint8), np.empty((len(ids), *size), np.uint8)
    loaded = reader.load(ids, image, labels)
    captions = [reader.key(int(i)) for i in ids]
    reader.close()
    store.close()
    if loaded.lost:
        raise Failure(f"cannot be read: {loaded.lost[0]}", Cause.DATA)
    always = replace(command.augment, p=1.0, strong_p=1.0)
    table = torch.from_numpy(target.table[:1])
    original = to_image(torch.from_numpy(image), torch.device("cpu")), to_classes(torch.from_numpy(labels), table)
    columns = [(captions, *original)]
    for epoch in range(1, command.epochs + 1):
        changes = draw(always, ids, command.seed, epoch, size)
        columns.append(([f"epoch {epoch}"] * len(ids), *apply(changes, *original, always)))
    cells = []
    for row in range(len(ids)):
        for words, pictures, masks in columns:
            pixels = pictures[row].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
            cells.append((words[row], outlined(pixels, masks[row].numpy(), target)))
    return draw_sheet(cells, columns=len(columns), size_px=min(max(size), 256))


def outlined(pixels: Pixels, classes: Pixels, target: Target) -> Pixels:
    """(H, W, 3) and (H, W) uint8 -> the picture, with each class but the background outlined in its colour."""
    from petseg.metrics.overlay import outline

    drawn = pixels.copy()
    for value in target.counted:
        drawn[outline(classes == value)] = target.classes[value].colour
    return drawn


if __name__ == "__main__":
    sys.exit(run_command(main))
