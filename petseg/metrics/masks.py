"""The masks that a finished run predicted on val, in one small file of its folder, readable without torch.

val_masks.npz has no pickle, and the same bytes for the same masks:

    keys    (N,) str      of the pictures, in the order of the split
    width   () int64      W of the masks, in the network's pixels
    bits    (N, H, ceil(W / 8)) uint8   with two classes: a bit per pixel, a row's first in the highest (numpy.packbits)
    classes (N, H, W) uint8             else: the class of each pixel

The masks are those of the best weights, from the pass that measured them: the counts in per_image.npz are theirs.
Compression leaves 3 % of smooth masks and 11 % of ragged ones: 0.1 to 0.3 MB for 368 pictures of 256 px.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from petseg.run_folder.layout import VAL_MASKS_NAME
from shards.command import printable
from shards.files import open_regular, write_whole

Stored = NDArray[np.uint8]  # (N, H, ceil(W / 8)) bits, or (N, H, W) classes
Classes = NDArray[np.uint8]


@dataclass(frozen=True)
class Masks:
    """Predicted masks, in the order of the split."""

    keys: tuple[str, ...]
    width_px: int
    stored: Stored
    packed: bool  # whether `stored` has a bit per pixel

    def of(self, position: int) -> Classes:
        """(H, W) uint8 classes of one picture."""
        if not self.packed:
            return self.stored[position]
        return np.unpackbits(self.stored[position], axis=-1, count=self.width_px)


def store(classes: Classes, packed: bool) -> Stored:
    """(..., W) uint8 classes -> (..., ceil(W / 8)) uint8 with a bit per pixel if `packed`, else the same."""
    return np.packbits(classes.astype(bool), axis=-1) if packed else classes


def save_masks(masks: Masks, folder: Path) -> None:
    """Write val_masks.npz into a run's folder."""
    content = io.BytesIO()
    arrays = {"keys": np.array(masks.keys), "width": np.array(masks.width_px)}
    arrays["bits" if masks.packed else "classes"] = masks.stored
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_whole(folder / VAL_MASKS_NAME, content.getvalue())


def load_masks(folder: Path) -> Masks | None:
    """The masks in a run's folder; None if it has none, as with earlier versions, or if the file is damaged."""
    try:
        with open_regular(folder / VAL_MASKS_NAME, follow=False) as file, np.load(file, allow_pickle=False) as arrays:
            keys = tuple(printable(str(key)) for key in arrays["keys"].tolist())
            packed = "bits" in arrays.files
            masks = Masks(keys, int(arrays["width"]), arrays["bits" if packed else "classes"], packed)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    stored, row_bytes = masks.stored, -(-masks.width_px // 8) if masks.packed else masks.width_px
    whole = stored.dtype == np.uint8 and stored.ndim == 3
    return masks if whole and stored.shape[0] == len(masks.keys) and stored.shape[2] == row_bytes else None
