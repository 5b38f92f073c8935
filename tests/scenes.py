"""Drawn scenes of three classes, in folders as others keep them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from shards.pack import PackConfig

SCENE_TABLE = """
name = "scenes"
ignore = [9]
[[class]]
name = "road"
values = [0]
[[class]]
name = "tree"
values = [3, 4]
display = "#00ff00"
[[class]]
name = "car"
values = [7]
"""


class Scenes:
    """Pictures and masks of three classes in images/SPLIT and masks/SPLIT, with a class table."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images, self.masks = f"{root}/images/{{split}}/{{key}}.jpg", f"{root}/masks/{{split}}/{{key}}.png"
        self.table = root / "classes.toml"
        root.mkdir(parents=True)
        self.table.write_text(SCENE_TABLE)

    def mask(self, seed: int = 0, width: int = 48, height: int = 32) -> np.ndarray:
        """(H, W) uint8 with the values 0, 3, 4, 7 and 9."""
        rng = np.random.default_rng(seed)
        values = np.zeros((height, width), np.uint8)
        for value in (3, 4, 7, 9):
            top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
            values[top : top + 8, left : left + 8] = value
        values[0, :4] = 3, 4, 7, 9
        return values

    def add(self, key: str, split: str = "train", seed: int | None = None, mask: object = None, **options: object):
        """A pair; `mask` is pixels, or the bytes of a file. Returns the paths of picture and mask."""
        seed = len(list(self.root.rglob("*.jpg"))) if seed is None else seed
        picture = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        paths = (Path(self.images.format(split=split, key=key)), Path(self.masks.format(split=split, key=key)))
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        paths[0].write_bytes(encode(Image.fromarray(picture), quality=92))
        content = self.mask(seed) if mask is None else mask
        paths[1].write_bytes(content if isinstance(content, bytes) else encode(Image.fromarray(content), "PNG"))
        return paths

    def add_many(self) -> None:
        """30 scenes: 20 train, 6 val, 4 test."""
        for split, count in (("train", 20), ("val", 6), ("test", 4)):
            for number in range(count):
                self.add(f"{split}_{number}", split)

    def config(self, out: Path, **changes: object) -> PackConfig:
        wanted = {"images": self.images, "masks": self.masks, "classes": str(self.table), "samples_per_shard": 8}
        return PackConfig(out=out, **({**wanted, "workers": 1} | changes))


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
