"""The pictures that wandb shows with masks to switch on and off, in small files of a run's folder.

overlay_masks.npz has the pictures of the end, best_overlays/epoch-N.npz those of some best epochs: an epoch is shown if
it is the best so far and its number is at least twice that of the one shown before, so that N epochs have at most
1 + log2(N). They stay in the folder, so that a replay shows what the run itself would have shown: at most 16 pictures
of at most 256 px, as JPEG, about 20 kB each.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.files import open_regular, write_whole

if TYPE_CHECKING:
    from petseg.evaluation.measure import PredictedPicture

OVERLAY_MASKS_NAME = "overlay_masks.npz"
BEST_FOLDER = "best_overlays"
IGNORED = 255
MAX_OVERLAYS = 16
MAX_PX = 256
JPEG_QUALITY = 90

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Overlay:
    """A picture with its masks, at the size that wandb gets."""

    key: str
    image: Pixels  # (H, W, 3) uint8
    truth: Pixels  # (H, W) uint8 classes, 255 where ignored
    prediction: Pixels  # (H, W) uint8 classes
    dice: float  # at the network's size, before the picture was shrunk


def best_name(epoch: int) -> str:
    """Name of the file with the pictures of a best epoch, in a run's folder."""
    return f"{BEST_FOLDER}/epoch-{epoch:05d}.npz"


def shown_epochs(folder: Path) -> list[int]:
    """The best epochs whose pictures are kept, in order."""
    return sorted(int(path.stem.removeprefix("epoch-")) for path in (folder / BEST_FOLDER).glob("epoch-*.npz"))


def is_due(epoch: int, folder: Path) -> bool:
    """Whether to show the pictures of this epoch, the best so far."""
    return epoch >= 2 * max(shown_epochs(folder), default=0)


def forget_after(epoch: int, folder: Path) -> None:
    """Delete the pictures of later epochs, which are about to be run again."""
    for shown in shown_epochs(folder):
        if shown > epoch:
            (folder / best_name(shown)).unlink()


def save_overlays(
    epoch: int, pictures: Sequence[PredictedPicture], folder: Path, name: str = OVERLAY_MASKS_NAME
) -> None:
    """Write the pictures of an epoch into a run's folder; no file if there are none."""
    if not pictures:
        return
    kept = [_shrink(picture) for picture in pictures[:MAX_OVERLAYS]]
    arrays: dict[str, np.ndarray] = {
        "epoch": np.array(epoch),
        "keys": np.array([overlay.key for overlay in kept]),
        "dice": np.array([overlay.dice for overlay in kept]),
    }
    for i, overlay in enumerate(kept):
        jpeg = io.BytesIO()
        Image.fromarray(overlay.image).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        arrays[f"{i}/jpeg"] = np.frombuffer(jpeg.getvalue(), np.uint8)
        arrays[f"{i}/truth"], arrays[f"{i}/prediction"] = overlay.truth, overlay.prediction
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    (folder / name).parent.mkdir(exist_ok=True)
    write_whole(folder / name, content.getvalue())


def load_overlays(folder: Path, name: str = OVERLAY_MASKS_NAME) -> tuple[int, list[Overlay]]:
    """(epoch, pictures) as saved; raises FileNotFoundError if there are none, ValueError for a damaged file."""
    try:
        return _load(folder / name)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{folder / name} is damaged ({type(error).__name__}): delete it") from None


def _load(path: Path) -> tuple[int, list[Overlay]]:
    with open_regular(path, follow=False) as content, np.load(content, allow_pickle=False) as file:
        # an earlier version kept no Dice
        dice = file["dice"] if "dice" in file.files else np.full(len(file["keys"]), np.nan)
        overlays = [
            Overlay(
                str(key),
                np.asarray(Image.open(io.BytesIO(file[f"{i}/jpeg"].tobytes()), formats=["JPEG"]).convert("RGB")),
                file[f"{i}/truth"],
                file[f"{i}/prediction"],
                float(dice[i]),
            )
            for i, key in enumerate(file["keys"])
        ]
        return int(file["epoch"]), overlays


def dice_of(truth: Pixels, prediction: Pixels, counted: Sequence[int] = (1,)) -> float:
    """Dice of one picture as in petseg.metrics.pixels, without torch; 255 does not count, and 1 if all are empty."""
    scores = []
    for one in counted:
        ours, theirs = (prediction == one) & (truth != IGNORED), truth == one
        if total := int(ours.sum()) + int(theirs.sum()):
            scores.append(2 * int((ours & theirs).sum()) / total)
    return sum(scores) / len(scores) if scores else 1.0


def _shrink(picture: PredictedPicture) -> Overlay:
    """The picture at most MAX_PX wide and high; masks keep their values."""
    height, width = picture.truth.shape
    scale, dice = MAX_PX / max(height, width), dice_of(picture.truth, picture.prediction, picture.target.counted)
    if scale >= 1:
        return Overlay(picture.key, picture.image, picture.truth, picture.prediction, dice)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(picture.image).resize(size, Image.Resampling.BICUBIC)
    truth, prediction = (
        np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for mask in (picture.truth, picture.prediction)
    )
    return Overlay(picture.key, np.asarray(image), truth, prediction, dice)
