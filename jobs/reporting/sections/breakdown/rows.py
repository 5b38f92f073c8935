"""Mean Dice of the leading cells in parts of the val pictures: a row for each group or class."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from jobs.reporting.statistics.units import by_unit

MAX_CELLS = 6
STEP = 0.05  # the scale begins at a multiple of it
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """Mean Dice of some pictures; reach: half of its interval for other such pictures, None of a single one."""

    value: float
    reach: float | None

    @property
    def low(self) -> float:
        """The lower end of its interval, within the bounds of Dice."""
        return max(0.0, self.value - (self.reach or 0.0))

    @property
    def high(self) -> float:
        return min(1.0, self.value + (self.reach or 0.0))


@dataclass(frozen=True)
class Row:
    """A part of the pictures."""

    name: str
    num_pictures: int
    means: tuple[Mean, ...]  # by cell


@dataclass(frozen=True)
class Scale:
    """The scale of the drawing beside the rows, which ends at 1."""

    low: float

    def x(self, value: float) -> float:
        """The x coordinate of a value in a drawing 208 wide, clipped to the scale."""
        return 4 + 200 * (min(max(value, self.low), 1.0) - self.low) / (1 - self.low)


def scale_of(rows: Iterable[Row]) -> Scale:
    lowest = min((mean.value for row in rows for mean in row.means), default=0.0)
    return Scale(max(0.0, min(1 - STEP, math.floor(lowest / STEP) * STEP)))


def gather_rows(names: Sequence[str], dice: Floats) -> list[Row]:
    """A row for each name, in alphabetical order; dice: (C, N)."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        members[name].append(position)
    return [
        Row(name, len(members[name]), tuple(mean_of(row[members[name]]) for row in dice)) for name in sorted(members)
    ]


def mean_of(values: Floats, units: NDArray[np.int64] | None = None) -> Mean:
    """The mean with half of its 95 % interval by Student's t, for other pictures or, given `units`, other groups."""
    values, mean = by_unit(values, units), float(values.mean())
    count = len(values)
    if count < 2:
        return Mean(mean, None)
    reach = special.stdtrit(count - 1, 0.5 + LEVEL / 2) * values.std(ddof=1) / math.sqrt(count)
    return Mean(mean, float(reach))
