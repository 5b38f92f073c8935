"""The spread between the runs of each cell, drawn from its posterior given a few seeds.

Two or three runs tell little of their own spread, so the cells lend each other theirs: most spread as all others do,
and a few may not. The model is a spike and a slab, a robust form of the moderated variances of Smyth (2004, Stat Appl
Genet Mol Biol 3:3) whose parameters are integrated out, because six cells are too few to estimate them:

    s_c^2 ~ v_c chi2(f_c) / f_c         the variance of the f_c + 1 runs' means in cell c
    v_c = v                             with probability 1 - WILD_SHARE: the cell spreads as the others do
    v_c ~ WILD_TIMES v / chi2(1)        with probability WILD_SHARE: its own variance is all that is known of it
    log v flat

So a wild cell widens its own intervals and hardly the others', and with many seeds each cell stands for itself. What
this does not reach: a wild cell whose two or three runs happen to agree looks tame. In 4,000 sweeps of 6 cells x 3
seeds without any difference one was found in 3.9 %, with a cell that spreads three times as widely in 6.4 %, with two
such cells in 8.4 %. benchmarks/verdict.py has these numbers and those of the ways this was chosen over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

WILD_SHARE = 0.1
WILD_TIMES = 4.0
GRID = 160  # values of log v
BELOW, ABOVE = 6.0, 14.0  # how far in log v the grid reaches beyond the least and the largest variance of a cell
NOTHING = 1e-20  # a variance of rounding alone
NEGLIGIBLE = 1e-9  # of the density's peak: the grid is laid again over the rest


def draw_variances(run_variance: Floats, freedom: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(draws, C) variances between runs, given (C,) observed ones and their (C,) degrees of freedom, 1 or more.

    All 0 if no cell's runs differ.
    """
    run_variance = np.where(run_variance > NOTHING, run_variance, 0.0)
    positive = run_variance[run_variance > 0]
    if not len(positive):
        return np.zeros((draws, len(run_variance)))
    logs = np.linspace(np.log(positive.min()) - BELOW, np.log(positive.max()) + ABOVE, GRID)
    density = _density(run_variance, freedom, logs)
    within = np.flatnonzero(density > NEGLIGIBLE * density.max())
    low, high = max(0, within[0] - 1), min(GRID - 1, within[-1] + 1)
    logs = np.linspace(logs[low], logs[high], GRID)
    share = np.cumsum(_density(run_variance, freedom, logs))
    bins = np.searchsorted(share / share[-1], rng.random(draws))
    common = np.exp(logs[bins] + (logs[1] - logs[0]) * (rng.random(draws) - 0.5))[:, None]
    spike, slab = _likelihoods(run_variance, freedom, common)
    is_wild = rng.random(spike.shape) < special.expit(slab - spike)
    own = (WILD_TIMES * common + freedom * run_variance) / (2 * rng.standard_gamma((1 + freedom) / 2, spike.shape))
    return np.where(is_wild, own, common)


def _density(run_variance: Floats, freedom: Floats, logs: Floats) -> Floats:
    """The density of log v, up to a factor. logs: (G,)."""
    log_density = np.logaddexp(*_likelihoods(run_variance, freedom, np.exp(logs)[:, None])).sum(axis=1)
    return np.exp(log_density - log_density.max())


def _likelihoods(run_variance: Floats, freedom: Floats, common: Floats) -> tuple[Floats, Floats]:
    """Log likelihoods of each cell's variance as an ordinary and as a wild cell, each weighted by its share.

    common: (G, 1) values of v. Terms that both share are left out.
    """
    half = freedom / 2
    spike = np.log(1 - WILD_SHARE) + half * np.log(half / common) - half * run_variance / common - special.gammaln(half)
    scale = WILD_TIMES * common / freedom
    slab = np.log(WILD_SHARE) - half * np.log(scale) - special.betaln(half, 0.5)
    return spike, slab - (half + 0.5) * np.log1p(run_variance / scale)
