"""The interface of a source: it lists samples, each of which knows its files and reads its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from shards.classes import ClassTable
from shards.labels.observed import Observed
from shards.labels.rules import LabelRules
from shards.manifest import CLASSES_VERSION, FORMAT_VERSION, Source

MAX_KEY_LENGTH = 90  # a USTAR header has 100 bytes for KEY.json
NAMED = 5  # how many names an error or a summary lists before it only counts


@dataclass(frozen=True)
class Mask:
    """A mask as it goes into a shard, at the size of its picture."""

    image: Image.Image  # 8-bit grey
    png: bytes | None = None  # the file's own bytes, where a shard can take them
    oddities: tuple[str, ...] = ()
    observed: Observed | None = None  # of a mask of classes

    @property
    def pixels(self) -> np.ndarray:
        """(H, W) uint8"""
        return np.asarray(self.image)


class Listed(Protocol):
    """One sample of a source: a picture and what its mask is made of."""

    @property
    def key(self) -> str:
        """Its name in the shards, which matches KEY_PATTERN."""

    @property
    def split(self) -> str: ...

    @property
    def picture(self) -> Path: ...

    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""

    def row(self) -> list[Any]:
        """The facts that identify it, beginning with key and split."""

    def facts(self) -> dict[str, Any]:
        """The facts that its JSON in the shard holds besides key, split and sizes."""

    def read_mask(self, picture: np.ndarray) -> Mask:
        """The mask of the picture (H, W, 3) uint8; raises Failure that names the file if it cannot be packed."""


@dataclass(frozen=True)
class NamedSample:
    """A sample of a source whose pictures have names and groups; both go into its JSON."""

    key: str
    name: str
    split: str
    group: str
    picture: Path

    def row(self) -> list[Any]:
        return [self.key, self.split, self.name, self.group]

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "group": self.group}


@dataclass(frozen=True)
class Listing:
    """All samples of a source, and the names of what else lies there, by kind of oddity."""

    source: Source
    samples: Sequence[Listed]
    oddities: dict[str, tuple[str, ...]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # what the manifest's packer holds of the source
    rules: LabelRules | None = None

    @property
    def classes(self) -> ClassTable | None:
        """None where the masks have no class table."""
        return self.rules.table() if self.rules else None

    @property
    def format_version(self) -> int:
        return CLASSES_VERSION if self.rules else FORMAT_VERSION
