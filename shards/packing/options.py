"""The flags of `python -m shards.pack`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.packing.plan import workers_for
from shards.sources.coco import CocoOptions
from shards.sources.patterns import PairOptions, SplitOptions
from shards.sources.pets.options import FolderOptions

LOWEST = {"samples_per_shard": 1, "image_size_px": 0, "workers": 0, "seed": 0, "max_corrupt": 0}
AUTO = "auto"
OF_PICTURES = ("masks", "coco", "classes", "splits_from", "val_share", "test_share", "group_by")  # what needs --images


@dataclass(frozen=True)
class PackConfig(FolderOptions):
    """Pack pictures and masks into a shard set. Name exactly one of --source, --download, --synthetic, --images."""

    out: Path = Path("data/shards")
    """Folder of the shard set."""
    images: str = ""
    """Pictures of any data set, such as 'camvid/images/{split}/{key}.jpg': picture and mask have {key} in common, which
    may span folders; {split} is train, val or test (or training, Tr, ...); * is anything within a name. With --coco,
    the folder of the pictures."""
    masks: str = ""
    """Masks of these pictures, such as 'camvid/masks/{split}/{key}.png'; {class} stands for a class's name where each
    class has a file of its own."""
    coco: str = ""
    """Annotations in COCO's format instead of masks, such as 'annotations/instances_{split}2017.json'."""
    classes: str = ""
    """The class table, a TOML file. `auto` packs nothing, but writes OUT/classes.toml from what is in the masks, and
    OUT/classes.png to check it by eye."""
    splits_from: tuple[Path, ...] = ()
    """Lists of keys named train.txt, val.txt and test.txt, for pictures whose folders do not tell their split."""
    val_share: float = 0.0
    """Share of the train pictures that becomes val, drawn by --seed."""
    test_share: float = 0.0
    """Share of the train pictures that becomes test, drawn by --seed."""
    group_by: str = ""
    """Regular expression: pictures in whose keys it finds the same text, or the same first parenthesis, stay in one
    split, as frames of one video or slices of one patient should."""
    lossy_masks: Literal["refuse", "nearest"] = "refuse"
    """What to do with pixels that lossy saving or interpolation changed: stop, or take the class with the nearest
    value."""
    seed: int = 0
    """Seed for the order of the samples within the shards, for drawn pictures, and for the shares."""
    samples_per_shard: int = 256
    """Largest number of samples in a shard; the shards of a split differ by one sample at most."""
    image_size_px: int = 0
    """Squash pictures (antialiased, JPEG quality 95) and masks (nearest) to N x N; 0 keeps the original bytes."""
    workers: int = 0
    """Processes; 0 means one per core, and one alone for a handful of samples."""
    max_corrupt: int = 10
    """Number of damaged pictures to accept (they decode with a warning); with more, packing stops and names them."""
    drop_duplicates: bool = False
    """Leave out of train each picture that is nearly the same as one of val or test, and name it in the summary; all
    pictures are read twice. Without it such pairs are only counted."""
    overwrite: bool = False
    """Replace a different shard set in --out."""
    resume: bool = False
    """Continue a pack that was killed: shards that it had finished, and that are whole, are used again."""
    check: bool = False
    """Only check whether packing could start, by what is in its folders and in --out; write nothing."""

    def __post_init__(self) -> None:
        given = [self.source is not None, self.download, self.synthetic != 0, bool(self.images)]
        choices = "--source DIR, --download, --synthetic N, --images PATTERN"
        if not self.images and (flag := next((name for name in OF_PICTURES if getattr(self, name)), "")):
            raise ValueError(f"--{flag.replace('_', '-')} needs --images PATTERN")
        if sum(given) != 1:
            raise ValueError(f"name exactly one of {choices} ({sum(given)} given)")
        if self.images and bool(self.masks) == bool(self.coco):
            raise ValueError("--images needs either --masks PATTERN or --coco JSON")
        if self.masks and not self.classes:
            raise ValueError("--masks needs --classes TOML; `--classes auto` writes one from what is in the masks")
        if self.classes == AUTO and self.check:
            raise ValueError("--classes auto packs nothing, so there is nothing to --check: leave one of them out")
        super().__post_init__()
        for name, lowest in LOWEST.items():
            if getattr(self, name) < lowest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}, but must be at least {lowest}")
        self.splits()  # which checks the shares

    def num_workers(self, num_samples: int) -> int:
        return self.workers or workers_for(num_samples)

    def splits(self) -> SplitOptions:
        return SplitOptions(self.splits_from, self.val_share, self.test_share, self.group_by, self.seed)

    def pairs(self) -> PairOptions:
        return PairOptions(self.images, self.masks, self.splits(), self.lossy_masks == "nearest")

    def coco_options(self) -> CocoOptions:
        return CocoOptions(self.images, self.coco, self.splits())
