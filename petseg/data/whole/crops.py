"""Crops of pictures at their own resolution: where each is taken is a function of (seed, epoch, sample) alone.

So any order, world size and point to resume from see the same crops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petseg.config.sizes import Size
from petseg.data.decode import Pixels
from petseg.data.letterbox import PAD_LABEL, PAD_RGB, centred
from petseg.data.loader import WholeReader
from petseg.data.plan import Ids
from petseg.data.tars import Loaded, Lost, Whole

STREAM = 1  # of the counter's highest word: the draws of petseg.augment, with the same key, begin at 0


@dataclass(frozen=True)
class Crops:
    """The crops of one epoch.

    rare: share of them that contain a pixel of a class drawn from those in the picture, each as likely as any other, as
        nnU-Net oversamples the foreground (Isensee et al. 2021)
    """

    size: Size
    seed: int
    epoch: int
    rare: float = 0.0

    def corner(self, sample: int, labels: Pixels) -> tuple[int, int]:
        """First row and column of a sample's crop; 0 along a side in which the picture is no larger than a crop."""
        rng = self._generator(sample)
        last = [max(0, side - crop) for side, crop in zip(labels.shape, self.size, strict=True)]
        if rng.random() < self.rare and (pixel := _pixel_of_some_class(rng, labels)):
            # of all crops that contain the pixel, one
            bounds = [
                (max(0, at - crop + 1), min(at, end)) for at, crop, end in zip(pixel, self.size, last, strict=True)
            ]
        else:
            bounds = [(0, end) for end in last]
        top, left = (int(rng.integers(low, high + 1)) for low, high in bounds)
        return top, left

    def _generator(self, sample: int) -> np.random.Generator:
        key = np.array([(self.seed << 32) | self.epoch, sample], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, STREAM]))


class CropReader:
    """Reads the crops of an epoch, as a source of petseg.data.loader."""

    def __init__(self, pictures: WholeReader, crops: Crops) -> None:
        self.size_px = crops.size
        self._pictures, self._crops = pictures, crops

    def load(self, ids: Ids, image: Pixels, labels: Pixels) -> Loaded:
        """Copy the samples' crops into image (B, H, W, 3) and labels (B, H, W) uint8."""
        loaded = Loaded(np.zeros(len(ids), np.uint64))
        for i, position in enumerate(ids.tolist()):
            picture = self._pictures.whole(position)
            if isinstance(picture, Lost):
                image[i], labels[i] = 0, PAD_LABEL
                loaded.lost.append(picture)
                continue
            self._copy(picture, position, image[i], labels[i])
            loaded.hashes[i] = picture.hash
        return loaded

    def _copy(self, picture: Whole, position: int, image: Pixels, labels: Pixels) -> None:
        high, wide = self._crops.size
        top, left = self._crops.corner(position, picture.labels)
        cut = np.s_[top : top + high, left : left + wide]
        inner = picture.labels[cut].shape
        if inner != (high, wide):
            image[...], labels[...] = PAD_RGB, PAD_LABEL
        at = centred((inner[0], inner[1]), (high, wide)).rows_columns()
        image[at], labels[at] = picture.image[cut], picture.labels[cut]


def _pixel_of_some_class(rng: np.random.Generator, labels: Pixels) -> tuple[int, int] | None:
    """Row and column of a pixel of a class drawn from those in the picture; None where no pixel counts."""
    counts = np.bincount(labels.ravel(), minlength=PAD_LABEL + 1)[:PAD_LABEL]
    classes = np.flatnonzero(counts)
    if not len(classes):
        return None
    chosen = rng.choice(classes)
    number = int(rng.integers(counts[chosen]))
    row, column = divmod(int(np.flatnonzero(labels.ravel() == chosen)[number]), labels.shape[1])
    return row, column
