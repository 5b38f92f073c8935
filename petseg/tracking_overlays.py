"""The pictures that wandb shows with masks to switch on and off, in one small file of a run's folder.

They outlive the run, so that a replay shows what the run itself would have: at most 16 of at most 256 px, the pictures
as JPEG, about 20 kB each.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.manifest import write_whole

if TYPE_CHECKING:
    from petseg.evaluate import Picture

OVERLAY_MASKS_NAME = "overlay_masks.npz"
MAX_OVERLAYS = 16
MAX_PX = 256
JPEG_QUALITY = 90

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Overlay:
    """A picture with its masks as wandb gets it."""

    key: str
    image: Pixels  # (H, W, 3) uint8
    truth: Pixels  # (H, W) uint8: 1 pet, 0 background, 255 ignored
    prediction: Pixels  # (H, W) uint8: 1 pet, 0 background


def save_overlays(epoch: int, pictures: Sequence[Picture], folder: Path) -> None:
    """Write the pictures, shown at an epoch, into a run's folder; none of them is written if there are none."""
    if not pictures:
        return
    kept = [_shrink(picture) for picture in pictures[:MAX_OVERLAYS]]
    arrays: dict[str, np.ndarray] = {
        "epoch": np.array(epoch),
        "keys": np.array([overlay.key for overlay in kept]),
    }
    for i, overlay in enumerate(kept):
        jpeg = io.BytesIO()
        Image.fromarray(overlay.image).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        arrays[f"{i}/jpeg"] = np.frombuffer(jpeg.getvalue(), np.uint8)
        arrays[f"{i}/truth"], arrays[f"{i}/prediction"] = overlay.truth, overlay.prediction
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_whole(folder / OVERLAY_MASKS_NAME, content.getvalue())


def load_overlays(folder: Path) -> tuple[int, list[Overlay]]:
    """(epoch, pictures) as they were saved; raises FileNotFoundError if there are none."""
    with np.load(folder / OVERLAY_MASKS_NAME, allow_pickle=False) as file:
        overlays = [
            Overlay(
                str(key),
                np.asarray(Image.open(io.BytesIO(file[f"{i}/jpeg"].tobytes())).convert("RGB")),
                file[f"{i}/truth"],
                file[f"{i}/prediction"],
            )
            for i, key in enumerate(file["keys"])
        ]
        return int(file["epoch"]), overlays


def _shrink(picture: Picture) -> Overlay:
    """At most MAX_PX wide and high; masks keep their values."""
    height, width = picture.truth.shape
    scale = MAX_PX / max(height, width)
    if scale >= 1:
        return Overlay(picture.key, picture.image, picture.truth, picture.prediction)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(picture.image).resize(size, Image.Resampling.BICUBIC)
    truth, prediction = (
        np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for mask in (picture.truth, picture.prediction)
    )
    return Overlay(picture.key, np.asarray(image), truth, prediction)
