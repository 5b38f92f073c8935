"""Intervals of mean Dice and of differences, from the Dice of every picture after every training run.

A cell is trained with S seeds, and each of its runs is measured on the same N pictures, which all cells share. Its mean
moves with two things: other pictures, which move all cells alike, so that differences are taken picture by picture; and
another training run, which moves one cell by itself, on all pictures at once. A test that only shuffles or redraws
pictures takes that second part for a finding. So the error of a contrast sum_c w_c mean_c is put together from both, as
for readers x cases in medical imaging (Obuchowski and Rockette 1995; Hillis 2007, Stat Med 26:596):

    runs      normal, of variance sum_c w_c^2 v_c / S_c, with v_c drawn from what the seeds leave open (spreads.py)
    pictures  Student's t with N - 1 degrees of freedom, of variance w' (K / N - diag(e_c^2 / (S_c N))) w, with K the
              covariance over pictures of the cells' means of each picture, and e_c^2 the mean square of run x picture,
              which v_c holds too

The errors of all contrasts of a family are drawn together, since they share cells and pictures. Each is measured in
units of its own 98 % quantile, so that a contrast with a wild cell does not widen the others'; the largest of the
family gives one critical value for all. A contrast's p value is the share of draws whose largest error is at least as
large as what was seen, and its interval reaches to the critical value: it excludes 0 exactly where p < 0.05, and all
intervals of the family hold together in 95 % of sweeps (a single-step method; Westfall and Young 1993). Draws have a
fixed seed and an order of cells that does not depend on how they are listed: the same numbers give the same answer.

Seeds are not paired between cells: the same number starts other weights in another architecture, only S - 1 degrees of
freedom would be left, and if runs of one seed do move together the intervals are only too wide. Why not a bootstrap of
seeds and pictures: three redrawn seeds have sqrt(2/3) of the spread of three seeds, and no t.

benchmarks/verdict.py compares this with other ways on drawn sweeps of a known truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from jobs.reporting.statistics.spreads import draw_variances

Floats = NDArray[np.float64]
LEVEL = 0.05  # 1 - 0.95 is more than that, and a p value of 0.05 would be less than it
CONFIDENCE = 1 - LEVEL
BALANCE = 0.98  # quantile of its own errors that a contrast is measured by
# draws by the number of cells: one less than a multiple of 20, so that a p value of 0.05 is one of those that can occur
DRAWS = ((12, 19_999), (60, 7_999), (150, 1_999), (np.inf, 999))
MEASURED = 4_000_000, 999  # errors that quantiles are taken of: so many of a family, at least so many of a contrast
CHUNK = 1_000_000  # errors of contrasts held at a time
JITTER = 1e-12  # of the variances, so that pictures on which cells agree do not break the factorisation


@dataclass(frozen=True)
class Cells:
    """Statistics of C cells on the same N pictures, C >= 1 and N >= 2."""

    mean: Floats  # (C,)
    seeds: NDArray[np.int64]  # (C,) training runs
    num_pictures: int
    covariance: Floats  # (C, C) over pictures, of the cells' means of each picture
    run_variance: Floats  # (C,) of the runs' means; 0 for a single run, of which it is not known
    both: Floats  # (C,) mean square of run x picture; 0 for a single run

    @property
    def is_single(self) -> NDArray[np.bool_]:
        """(C,) cells of a single run: other pictures are accounted for, other runs are not."""
        return self.seeds == 1

    @cached_property
    def errors(self) -> Floats:
        """(C, draws) errors of the means, drawn together; 0 for a cell of a single run."""
        draws = next(count for most, count in DRAWS if len(self.mean) <= most)
        return draw_errors(self, draws, np.random.default_rng(0))


@dataclass(frozen=True)
class Intervals:
    """Contrasts of cells, arrays of one shape."""

    value: Floats
    low: Floats
    high: Floats
    p: Floats  # two-sided, against 0, after all looks of the family; NaN: no test
    pictures_only: NDArray[np.bool_]  # a cell has a single run: the interval is for other pictures alone


@dataclass(frozen=True)
class Family:
    """Contrasts of cells that are tested together, arrays of shape (K,)."""

    value: Floats
    variance: Floats  # over pictures
    pictures_only: NDArray[np.bool_]  # a cell has a single run
    num_pictures: int | NDArray[np.int64]


def summarise(dice: Sequence[Floats]) -> Cells:
    """The statistics of cells. dice: per cell (S, N), a row per training run and a column per picture, the same in all.

    Raises ValueError if there are no two pictures, or not the same number in all cells.
    """
    if {runs.shape[1] for runs in dice} != {dice[0].shape[1]} or dice[0].shape[1] < 2:
        raise ValueError(f"cells are compared on the same two pictures or more, not {[runs.shape for runs in dice]}")
    num_pictures = dice[0].shape[1]
    by_picture = np.stack([runs.mean(axis=0) for runs in dice])
    covariance = np.atleast_2d(np.cov(by_picture))
    run_variance, both = np.zeros(len(dice)), np.zeros(len(dice))
    for i, runs in enumerate(dice):
        if len(runs) > 1:
            run_means = runs.mean(axis=1)
            run_variance[i] = run_means.var(ddof=1)
            rest = runs - run_means[:, None] - by_picture[i] + run_means.mean()
            both[i] = (rest**2).sum() / ((len(runs) - 1) * (num_pictures - 1))
    seeds = np.array([len(runs) for runs in dice])
    return Cells(by_picture.mean(axis=1), seeds, num_pictures, covariance, run_variance, both)


def draw_errors(cells: Cells, draws: int, rng: np.random.Generator) -> Floats:
    """(C, draws) errors of the means of the cells with two runs or more; 0 for the others."""
    several = np.flatnonzero(~cells.is_single)
    keys = (np.diag(cells.covariance), cells.both, cells.seeds, cells.run_variance, cells.mean)
    several = several[np.lexsort([key[several] for key in keys])]
    errors = np.zeros((len(cells.mean), draws))
    if not len(several):
        return errors
    seeds = cells.seeds[several]
    variances = draw_variances(cells.run_variance[several], (seeds - 1).astype(np.float64), draws, rng)
    runs = np.sqrt(variances / seeds) * rng.standard_normal(variances.shape)
    freedom = cells.num_pictures - 1
    stretch = np.sqrt(freedom / (2 * rng.standard_gamma(freedom / 2, draws)))
    over_pictures = cells.covariance / cells.num_pictures - np.diag(cells.both / (cells.seeds * cells.num_pictures))
    pictures = _root(over_pictures[np.ix_(several, several)]) @ rng.standard_normal((len(several), draws))
    errors[several] = runs.T + stretch * pictures
    return errors


def _root(covariance: Floats) -> Floats:
    """L with L L' the nearest matrix that is a covariance: a difference of two estimates may be none."""
    values, vectors = np.linalg.eigh(covariance)
    nearest = (vectors * np.maximum(values, 0)) @ vectors.T
    size = np.trace(nearest)
    return np.linalg.cholesky(nearest + JITTER * size * np.eye(len(nearest))) if size > 0 else nearest


def means(cells: Cells) -> Intervals:
    """Each cell's mean with its own interval: (C,) arrays; nothing is tested."""
    reach = np.quantile(np.abs(cells.errors), CONFIDENCE, axis=1)
    reach = np.where(cells.is_single, _reach_over_pictures(np.diag(cells.covariance), cells.num_pictures), reach)
    untested = np.full(reach.shape, np.nan)
    return Intervals(cells.mean, cells.mean - reach, cells.mean + reach, untested, cells.is_single)


def contrasts(cells: Cells, weights: Floats) -> Intervals:
    """sum_c w_c mean_c for each row of (K, C) weights, all of them one family: arrays of shape (K,)."""
    family = Family(
        value=weights @ cells.mean,
        variance=((weights @ cells.covariance) * weights).sum(axis=1),
        pictures_only=(weights != 0) @ cells.is_single,
        num_pictures=cells.num_pictures,
    )
    return _compare(family, cells.errors.shape[1], lambda at: weights[at] @ cells.errors)


def pairs(cells: Cells, errors: Floats | None = None) -> Intervals:
    """Row minus column for all pairs of cells, all of them one family: arrays of shape (C, C).

    errors: (C, draws) of the means, instead of the cells' own.
    """
    drawn = cells.errors if errors is None else errors
    one, other = np.triu_indices(len(cells.mean), 1)
    own = np.diag(cells.covariance)
    family = Family(
        value=cells.mean[one] - cells.mean[other],
        variance=own[one] + own[other] - 2 * cells.covariance[one, other],
        pictures_only=cells.is_single[one] | cells.is_single[other],
        num_pictures=cells.num_pictures,
    )
    above = _compare(family, drawn.shape[1], lambda at: drawn[one[at]] - drawn[other[at]])

    def square(upper: NDArray[Any], lower: NDArray[Any], diagonal: float) -> NDArray[Any]:
        whole = np.full((len(cells.mean),) * 2, diagonal, dtype=upper.dtype)
        whole[one, other], whole[other, one] = upper, lower
        return whole

    return Intervals(
        square(above.value, -above.value, 0.0),
        square(above.low, -above.high, 0.0),
        square(above.high, -above.low, 0.0),
        square(above.p, above.p, np.nan),
        square(above.pictures_only, above.pictures_only, False) | np.diag(cells.is_single),
    )


def first_minus_second(each: Sequence[Cells]) -> Intervals:
    """The first cell minus the second of each of K >= 1 comparisons, all of them one family: arrays of shape (K,).

    Ends lie within [-1, 1], as a difference of two Dice does: a class that few pictures show has a wide interval.
    For comparisons on different pictures, such as those that show a class. Each is drawn by itself: that the same
    pictures move several of them together is left out, which makes the intervals a little wider.
    """
    draws = next(count for most, count in DRAWS if len(each) <= most)
    drawn = [draw_errors(cells, draws, np.random.default_rng(number)) for number, cells in enumerate(each)]
    errors = np.stack([one[0] - one[1] for one in drawn])
    covariances = [cells.covariance for cells in each]
    family = Family(
        value=np.array([cells.mean[0] - cells.mean[1] for cells in each]),
        variance=np.array([one[0, 0] + one[1, 1] - 2 * one[0, 1] for one in covariances]),
        pictures_only=np.array([cells.is_single[:2].any() for cells in each]),
        num_pictures=np.array([cells.num_pictures for cells in each]),
    )
    compared = _compare(family, draws, lambda at: errors[at])
    return replace(compared, low=np.clip(compared.low, -1.0, 1.0), high=np.clip(compared.high, -1.0, 1.0))


def _compare(family: Family, draws: int, errors_of: Callable[[NDArray[np.int64]], Floats]) -> Intervals:
    """The intervals of a family of K contrasts, of shape (K,). errors_of: (k, draws) errors of some contrasts.

    Contrasts with a cell of a single run are not tested, and get Student's interval over pictures.
    """
    value, p = family.value, np.full(family.value.shape, np.nan)
    reach = _reach_over_pictures(family.variance, family.num_pictures)
    tested = np.flatnonzero(~family.pictures_only)
    units, largest = [], np.zeros(draws)
    measured = min(draws, max(MEASURED[1], MEASURED[0] // max(1, len(tested))))
    at = round(BALANCE * measured)
    step = max(1, CHUNK // draws)
    for start in range(0, len(tested), step):
        sizes = np.abs(errors_of(tested[start : start + step]))
        unit = np.partition(sizes[:, :measured], at, axis=1)[:, at]
        units.append(unit)
        sizes /= np.where(unit > 0, unit, 1.0)[:, None]
        np.maximum(largest, sizes.max(axis=0), out=largest)
    if not units:
        return Intervals(value, value - reach, value + reach, p, family.pictures_only)
    unit, largest = np.concatenate(units), np.sort(largest)
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = np.where(value[tested] == 0, 0.0, np.abs(value[tested]) / unit)
    p[tested] = (1 + draws - np.searchsorted(largest, seen)) / (draws + 1)
    reach[tested] = unit * largest[1 - round(LEVEL * (draws + 1))]
    return Intervals(value, *_ends(value, reach, p), p, family.pictures_only)


def _ends(value: Floats, reach: Floats, p: Floats) -> tuple[Floats, Floats]:
    """Low and high ends, which include 0 exactly where p shows nothing, despite rounding."""
    low, high, least = value - reach, value + reach, np.finfo(float).tiny
    shown, open_ = p < LEVEL, p >= LEVEL
    low = np.where(shown & (value > 0), np.maximum(low, least), np.where(open_, np.minimum(low, 0.0), low))
    high = np.where(shown & (value < 0), np.minimum(high, -least), np.where(open_, np.maximum(high, 0.0), high))
    return low, high


def _reach_over_pictures(variance: Floats, num_pictures: int | NDArray[np.int64]) -> Floats:
    """Half the width of Student's interval for other pictures. variance: over pictures."""
    error = np.sqrt(np.maximum(variance, 0) / num_pictures)
    return error * special.stdtrit(num_pictures - 1, 0.5 + CONFIDENCE / 2)


def rank_ranges(compared: Intervals) -> NDArray[np.int64]:
    """(C, 2) best and worst rank that each cell may have, 1 the highest, from all `pairs`.

    A cell loses a rank for each cell shown to be better and gains one for each shown to be worse. All ranges hold
    together, as the intervals do (Klein, Wright and Wieczorek 2020, J R Stat Soc A 183:589).
    """
    shown = compared.p < LEVEL
    better, worse = shown & (compared.value < 0), shown & (compared.value > 0)
    return np.stack([1 + better.sum(axis=1), len(shown) - worse.sum(axis=1)], axis=1)
