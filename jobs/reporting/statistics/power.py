"""The smallest difference that a sweep of a given size can show.

Sweeps are drawn and compared as the report compares them, so that the answer holds for the report's own intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jobs.reporting.statistics.compare import Cells, draw_errors, pairs

POWER = 0.8  # share of sweeps in which the difference is shown
SWEEPS, PAIRS = 40, 600  # sweeps drawn: at most, and as many as hold so many pairs
LEAST_SWEEPS = 3
DRAWS = 999
MOST_CELLS = 60  # more of them are estimated as so many
LADDER = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100)  # seeds that are looked at
DIGITS = 3  # of the spreads, so that the same question has one answer


@dataclass(frozen=True)
class Noise:
    """Standard deviations in Dice."""

    run: float  # of a training run's mean over pictures, in one cell
    picture: float  # of a picture in one cell, beyond what it does in all cells
    num_pictures: int
    unit: str = "pictures"  # or groups of pictures, which are counted then


def noise_of(cells: Cells) -> Noise | None:
    """The spreads of finished cells with two runs or more; None if there are fewer than two such cells."""
    several = np.flatnonzero(~cells.is_single)
    if len(several) < 2:
        return None
    freedom = cells.seeds[several] - 1
    run = math.sqrt(float((freedom * cells.run_variance[several]).sum() / freedom.sum()))
    covariance = cells.covariance[np.ix_(several, several)]
    count = len(several)
    alone = (np.trace(covariance) - covariance.sum() / count) / (count - 1)  # half of a mean pair's variance
    picture = math.sqrt(max(0.0, float(alone - (cells.both / cells.seeds)[several].mean())))
    return Noise(run, picture, cells.num_pictures)


def least_difference(num_cells: int, seeds: int, noise: Noise) -> float:
    """The true difference of two cells that POWER of all sweeps of num_cells cells with these seeds show.

    num_cells and seeds: 2 or more.
    """
    return _least_difference(
        min(num_cells, MOST_CELLS), seeds, _rounded(noise.run), _rounded(noise.picture), noise.num_pictures
    )


def seeds_for(difference: float, num_cells: int, noise: Noise) -> int | None:
    """The fewest seeds of LADDER that show the difference in POWER of sweeps; None if the most do not."""
    if least_difference(num_cells, LADDER[-1], noise) > difference:
        return None
    low, high = 0, len(LADDER) - 1
    while low < high:
        middle = (low + high) // 2
        if least_difference(num_cells, LADDER[middle], noise) <= difference:
            high = middle
        else:
            low = middle + 1
    return LADDER[high]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


@lru_cache(maxsize=256)
def _least_difference(num_cells: int, seeds: int, run: float, picture: float, num_pictures: int) -> float:
    rng = np.random.default_rng(0)
    above = np.triu_indices(num_cells, 1)
    needed = []
    for _ in range(max(LEAST_SWEEPS, min(SWEEPS, PAIRS // len(above[0])))):
        variances = run**2 * rng.chisquare(seeds - 1, num_cells) / (seeds - 1)
        error = math.sqrt(run**2 / seeds + picture**2 / num_pictures)
        cells = Cells(
            mean=error * rng.standard_normal(num_cells),
            seeds=np.full(num_cells, seeds),
            num_pictures=num_pictures,
            covariance=picture**2 * np.eye(num_cells),
            run_variance=variances,
            both=np.zeros(num_cells),
        )
        compared = pairs(cells, draw_errors(cells, DRAWS, rng))
        # the interval's reach minus the error of the difference
        needed.append((compared.high - 2 * compared.value)[above])
    return float(np.quantile(needed, POWER))
