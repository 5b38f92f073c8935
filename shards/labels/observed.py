"""A mask as class indices, and what was observed while it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from shards.cause import Cause
from shards.command import Failure

MAX_UNKNOWN = 16  # distinct values without a class that are noted of one mask


@dataclass(frozen=True)
class Observed:
    """One mask's pixels by class, and its faults."""

    name: str  # of its file, for messages
    split: str
    pixels: tuple[int, ...]  # by class, then those to ignore; empty if the mask could not be read
    unknown: Mapping[str, int] = field(default_factory=dict)  # values in no class -> pixels
    faults: tuple[tuple[str, str], ...] = ()  # (kind of shards.labels.faults, detail)


class LabelProblem(Failure):
    """A mask that cannot be packed, with what was observed."""

    def __init__(self, message: str, observed: Observed) -> None:
        super().__init__(message, Cause.DATA)
        self.observed = observed

    def __reduce__(self) -> tuple[type[LabelProblem], tuple[str, Observed]]:
        return LabelProblem, (str(self), self.observed)


@dataclass(frozen=True)
class LabelMask:
    """A mask of class indices."""

    indices: np.ndarray  # (H, W) uint8, 0 to K - 1 or IGNORE_VALUE
    observed: Observed
    oddities: tuple[str, ...] = ()


def count_pixels(indices: np.ndarray, num_classes: int) -> tuple[int, ...]:
    """Pixels by class, then those to ignore."""
    counts = np.bincount(indices.reshape(-1), minlength=256)
    return (*map(int, counts[:num_classes]), int(counts[255]))
