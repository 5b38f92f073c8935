"""How sure is a mean Dice, and a difference between two? From the Dice of every picture after every training run.

A cell is trained with S seeds, and each of its runs is measured on the same N pictures, which all cells share. Its mean
moves with two things: other pictures, which move all cells alike, so that differences are taken picture by picture; and
another training run, which moves one cell by itself, on all pictures at once. A test that only shuffles or redraws
pictures takes that second part for a finding. So the variance of a contrast sum_c w_c mean_c is put together from both,
as for readers x cases in medical imaging (Obuchowski and Rockette 1995; Hillis 2007, Stat Med 26:596, whose
denominator this is, here with the runs of each cell their own):

    V = V_runs + max(V_pictures - V_both, 0)
    V_pictures = variance over pictures of sum_c w_c (mean of the picture in cell c) / N
    V_runs     = sum_c w_c^2 s_c^2 / S_c      with s_c^2 the variance of the runs' means
    V_both     = sum_c w_c^2 e_c^2 / (S_c N)  with e_c^2 the mean square of run x picture, which the other two both hold

and Student's t with Satterthwaite's degrees of freedom. Two or three seeds tell little of their own spread, so s_c^2 is
pooled over all cells of the sweep, except where a contrast's own cells spread more: then theirs counts. Seeds are not
paired between cells: the same number starts other weights in another architecture, only S - 1 degrees of freedom would
be left, and if runs of one seed do move together the interval is only too wide.

Why not a bootstrap of seeds and pictures: three redrawn seeds have sqrt(2/3) of the spread of three seeds, and no t.
tests/jobs/reporting/test_compare.py draws sweeps of a known truth: the bootstrap's 95 % intervals of a difference, with
three seeds, held it in 90 % of them and in 74 % where runs differ more, these in 96 and 97 %. What these do not reach:
two cells of two seeds each (93 %; a difference found in 6.6 % of sweeps that have none), and two cells whose runs both
spread three times as widely as all others' (89 % with two seeds, 93 % with three). And one wild cell widens them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cells:
    """What C cells on the same N pictures have to say, C >= 1 and N >= 2."""

    mean: Floats  # (C,)
    seeds: NDArray[np.int64]  # (C,) training runs
    num_pictures: int
    covariance: Floats  # (C, C) over pictures, of the cells' means of each picture
    run_variance: Floats  # (C,) of the runs' means; 0 for a single run, of which it is not known
    both: Floats  # (C,) mean square of run x picture; 0 for a single run

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the pooled variance between runs."""
        return int((self.seeds - 1).sum())

    @property
    def pooled(self) -> float:
        """Variance between runs of one cell, over all cells; 0 where all have a single run."""
        return float(((self.seeds - 1) * self.run_variance).sum() / max(self.freedom, 1))


@dataclass(frozen=True)
class Estimates:
    """Contrasts of cells, arrays of one shape."""

    value: Floats
    error: Floats  # standard error
    freedom: Floats  # of Student's t
    pictures_only: NDArray[np.bool_]  # a cell has a single run: other pictures are accounted for, other runs are not

    @cached_property
    def reach(self) -> Floats:
        """From the value to either end of its CONFIDENCE interval."""
        return self.error * special.stdtrit(self.freedom, 0.5 + CONFIDENCE / 2)

    @cached_property
    def low(self) -> Floats:
        return self.value - self.reach

    @cached_property
    def high(self) -> Floats:
        return self.value + self.reach

    @cached_property
    def p(self) -> Floats:
        """Two-sided, against 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.value == 0, 0.0, np.abs(self.value) / self.error)
        return 2 * special.stdtr(self.freedom, -t)


def summarise(dice: Sequence[Floats]) -> Cells:
    """Per cell (S, N): a row per training run, a column per picture, the same pictures in all cells.

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


def contrasts(cells: Cells, weights: Floats) -> Estimates:
    """sum_c w_c mean_c for each row of (K, C) weights: arrays of shape (K,)."""
    squares = weights**2
    return _estimates(
        cells,
        value=weights @ cells.mean,
        pictures=((weights @ cells.covariance) * weights).sum(axis=1),
        terms=[squares**power @ term for power, term in _terms(cells)],
    )


def pairs(cells: Cells) -> Estimates:
    """Row minus column for all pairs of cells: arrays of shape (C, C)."""
    variance = np.diag(cells.covariance)
    return _estimates(
        cells,
        value=cells.mean[:, None] - cells.mean,
        pictures=variance[:, None] + variance - 2 * cells.covariance,
        terms=[term[:, None] + term for _, term in _terms(cells)],
    )


def _terms(cells: Cells) -> list[tuple[int, Floats]]:
    """What a contrast adds up over its cells, and the power of w_c^2 it is weighed with: V_runs of their own, its
    square by degrees of freedom, 1 / S_c, V_both, and whether there is one run alone."""
    own = cells.run_variance / cells.seeds
    return [
        (1, own),
        (2, own**2 / np.maximum(cells.seeds - 1, 1)),
        (1, 1 / cells.seeds),
        (1, cells.both / (cells.seeds * cells.num_pictures)),
        (1, (cells.seeds == 1).astype(float)),
    ]


def _estimates(cells: Cells, value: Floats, pictures: Floats, terms: Sequence[Floats]) -> Estimates:
    own, own_square, per_seed, both, alone = terms
    pictures = np.maximum(pictures, 0) / cells.num_pictures
    pictures_only = alone > 0
    pooled = cells.pooled * per_seed
    excess = np.maximum(own - pooled, 0)
    runs = np.where(pictures_only, 0, pooled + excess)
    variance = runs + np.maximum(pictures - np.where(pictures_only, 0, both), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # pooled with its degrees of freedom, and what its own cells spread beyond it with theirs
        square = pooled**2 / max(cells.freedom, 1) + np.where(excess > 0, (excess / own) ** 2 * own_square, 0)
        square = np.where(pictures_only, 0, square) + pictures**2 / (cells.num_pictures - 1)
        freedom = np.where(variance > 0, variance**2 / square, 1.0)
    return Estimates(value, np.sqrt(variance), np.maximum(freedom, 1.0), pictures_only)


def holm(p: Floats) -> Floats:
    """(M,) p values as they stand after M looks: below 0.05 all of them together are wrong at most once in twenty
    families (Holm 1979). NaN is no look, and stays."""
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def holm_pairs(estimates: Estimates) -> Floats:
    """(C, C) p values of `pairs` after as many looks as there are pairs; NaN on the diagonal and where a difference
    is known of pictures alone, which no p value should make a finding of."""
    above = np.triu_indices(len(estimates.value), 1)
    p = np.where(estimates.pictures_only, np.nan, estimates.p)[above]
    adjusted = np.full(estimates.value.shape, np.nan)
    adjusted[above] = holm(p)
    adjusted.T[above] = adjusted[above]
    return adjusted


def rank_ranges(estimates: Estimates, adjusted: Floats, level: float = 1 - CONFIDENCE) -> NDArray[np.int64]:
    """(C, 2) best and worst rank that each cell may have, 1 the highest: a place is lost for each cell shown to be
    better and gained for each shown to be worse. All hold together with 1 - level, since all pairs do (Klein, Wright
    and Wieczorek 2020, J R Stat Soc A 183:589, who take them from joint intervals)."""
    shown = np.nan_to_num(adjusted, nan=1.0) < level
    better, worse = shown & (estimates.value < 0), shown & (estimates.value > 0)
    return np.stack([1 + better.sum(axis=1), len(shown) - worse.sum(axis=1)], axis=1)
