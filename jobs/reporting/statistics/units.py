"""The pictures of a split as independent units: frames of one video, or slices of one patient, are one unit.

Intervals for other pictures take a cell's Dice on each picture for a draw of its own. Frames of one video are near
repetitions of one another, and an interval over them would be too narrow. Where the set was packed with --group-by, the
units are whole groups: the mean over all N pictures stays as it is, and its error is that of a ratio of sums over G
groups (Cochran 1977, Sampling Techniques, section 6.3; in other fields a cluster-robust error). To that end each group
gets the value

    y_g = m + (G / N) (sum of the group's pictures - n_g m)        with m the mean over all pictures and n_g its size

whose mean is m, and whose variance over G is the error squared. With one picture per group, y is the picture's Dice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def number_units(groups: Sequence[str]) -> NDArray[np.int64] | None:
    """(N,) the unit of each picture; None if each picture is one, or if a single group would be the only unit."""
    names, units = np.unique(np.array(groups, dtype=object), return_inverse=True)
    return units if 1 < len(names) < len(groups) else None


def by_unit(dice: Floats, units: NDArray[np.int64] | None) -> Floats:
    """(..., N) Dice of pictures -> (..., G) values of units, of the same mean; as it is without units."""
    if units is None:
        return dice
    _, units = np.unique(units, return_inverse=True)  # of some of the pictures, some units may be missing
    mean = dice.mean(axis=-1, keepdims=True)
    sums = np.apply_along_axis(lambda row: np.bincount(units, weights=row), -1, dice - mean)
    return mean + sums.shape[-1] / len(units) * sums
