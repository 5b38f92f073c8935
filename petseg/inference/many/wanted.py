"""What is wanted of a prediction: the flags that the commands which predict share.

Imports no torch, which takes seconds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from petseg.metrics import Tta
from shards.files import NotRegular, open_regular

Segmentation = Literal["none", "run_lengths", "polygons"]  # of COCO's annotations, if there are any

FORMAT_VERSION = 1
OF_THE_OUTPUTS = ("tta", "keep_largest", "min_area_px", "precision", "coco")  # the other fields change no output


@dataclass(frozen=True)
class Wanted:
    """Which files are written of each picture, and how they are computed."""

    probabilities: bool = False
    """Write the probabilities of all classes too, as .npz."""
    overlays: bool = False
    """Write the pictures tinted in the colours of their classes."""
    cutouts: bool = False
    """Write the pictures with a transparent background."""
    coco: bool = False
    """Write coco.json: an annotation per picture and class, with run lengths."""
    polygons: bool = False
    """With --coco, outlines as polygons instead of run lengths."""
    tta: Tta = "none"
    """Average the probabilities of several views: the picture and its mirror image, three scales, or all six."""
    keep_largest: bool = False
    """Keep only the largest connected part of each class."""
    min_area_px: int = 0
    """Connected parts of fewer pixels become background."""
    precision: Literal["as_trained", "no", "bf16", "fp16"] = "as_trained"
    """Mixed precision of the network."""
    device: str = "auto"
    """auto = a GPU for each process if there are any, or a name of torch such as cpu or cuda:1."""
    batch_size: int = 8
    """Pictures, or windows, that go through the network together."""
    threads: int = 2
    """Threads per process that read and write pictures."""

    def __post_init__(self) -> None:
        if self.polygons and not self.coco:
            raise ValueError("--polygons says how coco.json is written: add --coco")
        for name, least in (("min_area_px", 0), ("batch_size", 1), ("threads", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)}: must be at least {least}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The folders of the outputs."""
        return ("masks", *(name for name in ("probabilities", "overlays", "cutouts") if getattr(self, name)))

    @property
    def segmentation(self) -> Segmentation:
        """What coco.json holds."""
        return "none" if not self.coco else "polygons" if self.polygons else "run_lengths"


def identity(wanted: Wanted, weights: Sequence[Path], paths: Sequence[str]) -> dict[str, Any]:
    """All that the outputs depend on."""
    return {
        "format_version": FORMAT_VERSION,
        "weights": [sha256_of(path) for path in weights],
        "paths": [one if one == "-" else os.path.abspath(one) for one in paths],  # noqa: PTH100 - keeps links
        **{name: getattr(wanted, name) for name in OF_THE_OUTPUTS},
        **({"polygons": True} if wanted.polygons else {}),  # folders of an earlier petseg lack it
        "kinds": list(wanted.kinds),
    }


def sha256_of(path: Path) -> str:
    """The hash of a weights file; raises ValueError if there is none."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotRegular) as error:
        raise ValueError(f"--weights {path}: {error.strerror or error}") from None
