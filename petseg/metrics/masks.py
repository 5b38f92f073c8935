"""The masks that a finished run predicted on val, in one small file of its folder, readable without torch.

val_masks.npz has no pickle, and the same bytes for the same masks:

    keys    (N,) str      of the pictures, in the order of the split
    width   () int64      W of the masks, in the network's pixels
    bits    (N, H, ceil(W / 8)) uint8   a bit per pixel, 1 = pet, a row's first in the highest bit (numpy.packbits)

The masks are those of the best weights, from the pass that measured them: the counts in per_image.npz are theirs.
Compression leaves 3 % of smooth masks and 11 % of ragged ones: 0.1 to 0.3 MB for 368 pictures of 256 px.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from petseg.run_folder.layout import VAL_MASKS_NAME
from shards.command import printable
from shards.files import open_regular, write_whole

Bits = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Masks:
    """Predicted masks, in the order of the split."""

    keys: tuple[str, ...]
    width_px: int
    bits: Bits  # (N, H, ceil(W / 8))

    def of(self, position: int) -> Mask:
        """(H, W) mask of one picture."""
        return unpack(self.bits[position], self.width_px)


def pack(masks: Mask) -> Bits:
    """(..., W) bool -> (..., ceil(W / 8)) uint8."""
    return np.packbits(masks, axis=-1)


def unpack(bits: Bits, width_px: int) -> Mask:
    """(..., ceil(W / 8)) uint8 -> (..., W) bool."""
    return np.unpackbits(bits, axis=-1, count=width_px).astype(bool)


def save_masks(keys: Sequence[str], width_px: int, bits: Bits, folder: Path) -> None:
    """Write val_masks.npz into a run's folder."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, keys=np.array(keys), width=np.array(width_px), bits=bits)
    write_whole(folder / VAL_MASKS_NAME, content.getvalue())


def load_masks(folder: Path) -> Masks | None:
    """The masks in a run's folder; None if it has none, as with earlier versions, or if the file is damaged."""
    try:
        with open_regular(folder / VAL_MASKS_NAME, follow=False) as file, np.load(file, allow_pickle=False) as arrays:
            keys = tuple(printable(str(key)) for key in arrays["keys"].tolist())
            masks = Masks(keys, int(arrays["width"]), arrays["bits"])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    whole = masks.bits.dtype == np.uint8 and masks.bits.ndim == 3
    fits = whole and masks.bits.shape[0] == len(masks.keys) and masks.bits.shape[2] == -(-masks.width_px // 8)
    return masks if fits else None
