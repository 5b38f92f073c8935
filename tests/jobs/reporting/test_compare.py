"""Intervals and tests: on cases worked by hand, against scipy, and on sweeps drawn from a known truth."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from jobs.reporting.compare import Cells, contrasts, holm, holm_pairs, pairs, rank_ranges, summarise

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What a drawn sweep is made of: standard deviations, in Dice."""

    cells: int = 6
    seeds: int = 3
    pictures: int = 100
    run: float = 0.004  # of a training run, on all pictures
    picture: float = 0.08  # of a picture, in all cells
    taste: float = 0.02  # of a picture in one cell
    rest: float = 0.02
    wild: float = 1.0  # how much wider the runs of the last two cells spread
    shared: float = 0.0  # share of a run's variance that runs of one seed have in common
    skewed: bool = False  # as Dice is: many good pictures, a few bad ones

    def draw(self, rng: np.random.Generator, shift: float = 0.0) -> list[Floats]:
        """Per cell (S, N); all of one true mean, 0, but the first, which is higher by shift."""

        def noise(*shape: int) -> Floats:
            return 1 - rng.exponential(size=shape) if self.skewed else rng.standard_normal(shape)

        c, s, n = self.cells, self.seeds, self.pictures
        own, common = rng.standard_normal((c, s, 1)), rng.standard_normal((1, s, 1))
        runs = self.run * (np.sqrt(1 - self.shared) * own + np.sqrt(self.shared) * common)
        runs[-2:] *= self.wild
        dice = runs + self.picture * noise(1, 1, n) + self.taste * noise(c, 1, n) + self.rest * noise(c, s, n)
        dice[0] += shift
        return list(dice)


def redrawn(dice: Floats, rng: np.random.Generator, draws: int = 400) -> tuple[float, float]:
    """The percentile interval of a bootstrap of seeds and pictures (Owen 2007), for comparison."""
    seeds, pictures = dice.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    columns = rng.multinomial(pictures, np.full(pictures, 1 / pictures), draws) / pictures
    low, high = np.quantile(((rows @ dice) * columns).sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def flat(*runs: float) -> Floats:
    """(S, 40): runs that have the same Dice on all pictures."""
    return np.array(runs)[:, None] * np.ones((1, 40))


# --- by hand, and against scipy


def test_one_run_each_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0.9, 0.05, (1, 60))
    b = a + rng.normal(0.01, 0.02, (1, 60))
    cells = summarise([a, b])
    found, expected = pairs(cells), stats.ttest_rel(a[0], b[0])
    interval = expected.confidence_interval(0.95)
    assert found.p[0, 1] == pytest.approx(expected.pvalue)
    assert (found.low[0, 1], found.high[0, 1]) == pytest.approx((interval.low, interval.high))
    assert found.pictures_only.all()
    assert np.isnan(holm_pairs(found)).all()  # no p value makes a finding of one run each
    alone = contrasts(cells, np.eye(2))
    one = stats.ttest_1samp(a[0], 0).confidence_interval(0.95)
    assert (alone.low[0], alone.high[0]) == pytest.approx((one.low, one.high))


def test_runs_alone_are_the_t_test_of_their_means() -> None:
    a, b = (0.90, 0.905, 0.907), (0.91, 0.912, 0.917)
    found = pairs(summarise([flat(*a), flat(*b)]))
    assert found.p[0, 1] == pytest.approx(stats.ttest_ind(a, b).pvalue)
    assert found.freedom[0, 1] == pytest.approx(4)


def test_cells_that_spread_more_than_the_others_count_by_themselves() -> None:
    """By hand: pooled 4e-6 = (1e-6 + 1e-6 + 1e-6 + 13e-6) / 4, and the noisy pair's own 7e-6."""
    half = np.sqrt([0.5e-6, 0.5e-6, 0.5e-6, 6.5e-6])
    cells = summarise([flat(0.9 - h, 0.9 + h) for h in half])
    assert cells.pooled == pytest.approx(4e-6)
    found = pairs(cells)
    assert found.error[0, 1] ** 2 == pytest.approx(4e-6)  # 4e-6 (1/2 + 1/2), though the two spread less
    assert found.freedom[0, 1] == pytest.approx(4)
    assert found.error[2, 3] ** 2 == pytest.approx(7e-6)  # (1e-6 + 13e-6) / 2
    # 49 / (4^2 / 4 + 3^2 / f) with f = 7^2 / (0.5^2 + 6.5^2)
    assert found.freedom[2, 3] == pytest.approx(49 / (4 + 9 * (0.25 + 42.25) / 49))


def test_a_weighted_contrast_by_hand() -> None:
    """Of the same cells: own 0.25 (0.5 + 0.5) e-6 + 6.5e-6, pooled 4e-6 (0.25 + 0.25 + 1) / 2, the rest is excess."""
    half = np.sqrt([0.5e-6, 0.5e-6, 0.5e-6, 6.5e-6])
    found = contrasts(summarise([flat(0.9 - h, 0.9 + h) for h in half]), np.array([[-0.5, -0.5, 0.0, 1.0]]))
    assert found.error[0] ** 2 == pytest.approx(6.75e-6)
    own_freedom = 6.75**2 / (2 * 0.0625 * 0.25 + 42.25)
    assert found.freedom[0] == pytest.approx(6.75**2 / (3**2 / 4 + 3.75**2 / own_freedom))


def test_three_times_a_contrast_is_three_times_as_sure() -> None:
    """What each part is weighed with: pictures, runs pooled and their own, and both."""
    weights = np.array([[0.5, 0.5, -1.0], [1.0, 0.0, 0.0]])
    for wild in (0.2, 5.0):
        cells = summarise(Truth(cells=3, pictures=30, wild=wild).draw(np.random.default_rng(3)))
        once, thrice = contrasts(cells, weights), contrasts(cells, 3 * weights)
        assert thrice.value == pytest.approx(3 * once.value)
        assert thrice.error == pytest.approx(3 * once.error)
        assert thrice.freedom == pytest.approx(once.freedom)


def test_variance_by_hand() -> None:
    """Two runs on two pictures: V_runs 0.06^2 / 4, V_pictures 0.1^2 / 4, V_both 4 * 0.01^2 / 4."""
    cells = summarise([np.array([[0.80, 0.92], [0.88, 0.96]])])
    assert cells.run_variance == pytest.approx([0.06**2 / 2])
    assert cells.covariance == pytest.approx(np.array([[0.10**2 / 2]]))
    assert cells.both == pytest.approx([4 * 0.01**2])
    (error,) = contrasts(cells, np.ones((1, 1))).error
    assert error**2 == pytest.approx(0.0009 + 0.0025 - 0.0001)


def test_pairs_are_contrasts_and_a_pair_turned_is_its_negative() -> None:
    rng = np.random.default_rng(1)
    cells = summarise([rng.normal(0.9, 0.05, (seeds, 30)) for seeds in (1, 2, 3, 5)])
    found = pairs(cells)
    rows, columns = np.triu_indices(4, 1)
    same = contrasts(cells, np.eye(4)[rows] - np.eye(4)[columns])
    for name in ("value", "error", "freedom", "low", "high", "p", "pictures_only"):
        assert getattr(found, name)[rows, columns] == pytest.approx(getattr(same, name))
    assert found.low == pytest.approx(-found.high.T)
    assert found.pictures_only.tolist() == [[i == 0 or j == 0 for i in range(4)] for j in range(4)]


def test_agrees_with_what_redraws_signs_and_ranks_of_pictures() -> None:
    """Of one run each, where pictures are all there is: three other ways to the same answer."""
    rng = np.random.default_rng(2)
    a = rng.normal(0.9, 0.05, (1, 200))
    b = a + rng.normal(0.004, 0.03, (1, 200))
    found, difference = pairs(summarise([a, b])), (a - b)[0]
    drawn = stats.bootstrap((difference,), np.mean, n_resamples=4000, rng=rng, method="BCa").confidence_interval
    assert (found.low[0, 1], found.high[0, 1]) == pytest.approx((drawn.low, drawn.high), abs=0.0004)
    flips = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=4000, rng=rng)
    assert found.p[0, 1] == pytest.approx(flips.pvalue, abs=0.02)
    assert found.p[0, 1] == pytest.approx(stats.wilcoxon(difference).pvalue, abs=0.08)


def test_identical_cells_do_not_differ() -> None:
    found = pairs(summarise([flat(0.9, 0.9), flat(0.9, 0.9)]))
    assert (found.p == 1).all()
    assert (found.low == 0).all()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="same two pictures"):
        summarise([np.ones((2, 3)), np.ones((2, 4))])
    with pytest.raises(ValueError, match="same two pictures"):
        summarise([np.ones((2, 1))])


def test_holm_by_hand() -> None:
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.5])
    assert holm(p) == pytest.approx([0.04, 0.09, np.nan, 0.09, 0.5], nan_ok=True)
    assert holm(np.array([])).shape == (0,)


def test_ranks_span_ties() -> None:
    """The first two are told from the last alone, the third from none."""
    values = np.array([0.930, 0.929, 0.910, 0.900])
    cells = Cells(values, np.full(4, 3), 9, np.eye(4), np.ones(4), np.ones(4))
    adjusted = np.full((4, 4), 0.2)
    for i in (0, 1):
        adjusted[i, 3] = adjusted[3, i] = 0.01
    assert rank_ranges(pairs(cells), adjusted).tolist() == [[1, 3], [1, 3], [1, 4], [3, 4]]


# --- on drawn sweeps


def coverage(truth: Truth, sweeps: int, seed: int = 0) -> dict[str, float]:
    """Share of 95 % intervals that hold the truth: of cells, pairs, the last pair and a main effect; share of sweeps
    without any difference in which Holm finds one; share of pairs that a true difference of 0.02 is found in."""
    rng = np.random.default_rng(seed)
    weights = np.repeat([1.0, -1.0], truth.cells // 2)[None] / (truth.cells // 2)
    above = np.triu_indices(truth.cells, 1)
    held: dict[str, list[float]] = {name: [] for name in ("cell", "pair", "last", "main", "false", "power")}
    for _ in range(sweeps):
        cells = summarise(truth.draw(rng))
        found, alone, main = pairs(cells), contrasts(cells, np.eye(truth.cells)), contrasts(cells, weights)
        holds = (found.low <= 0) & (found.high >= 0)
        held["cell"].append(float(((alone.low <= 0) & (alone.high >= 0)).mean()))
        held["pair"].append(float(holds[above].mean()))
        held["last"].append(float(holds[-2, -1]))
        held["main"].append(float(main.low[0] <= 0 <= main.high[0]))
        held["false"].append(float((holm_pairs(found)[above] < 0.05).any()))
        held["power"].append(float((holm_pairs(pairs(summarise(truth.draw(rng, 0.02))))[0, 1:] < 0.05).mean()))
    return {name: float(np.mean(values)) for name, values in held.items()}


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_truth(seeds: int) -> None:
    found = coverage(Truth(seeds=seeds), sweeps=400)
    assert 0.92 <= found["cell"] <= 0.98, found
    assert 0.92 <= found["pair"] <= 0.985, found
    assert 0.92 <= found["main"] <= 0.98, found
    assert found["false"] <= 0.065, found
    assert found["power"] >= {2: 0.4, 3: 0.7, 5: 0.9}[seeds], found


def test_shuffled_pictures_take_the_luck_of_a_run_for_a_finding() -> None:
    """Why pictures alone are no test: of runs that are all alike, most pairs of single runs differ `significantly`."""
    rng = np.random.default_rng(0)
    truth = Truth(cells=2, seeds=1, run=0.01)
    p = [pairs(summarise(truth.draw(rng))).p[0, 1] for _ in range(200)]
    assert np.mean(np.array(p) < 0.05) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize(
    "truth",
    [
        Truth(),
        Truth(run=0.0),
        Truth(run=0.02),
        Truth(shared=0.5),
        Truth(skewed=True),
        Truth(pictures=368, run=0.002),
        Truth(cells=2),
        Truth(wild=3.0),
    ],
    ids=["lab", "no run effect", "runs above all", "seeds shared", "skewed", "val split", "two cells", "wild cells"],
)
def test_coverage_at_length(truth: Truth, seeds: int) -> None:
    truth = replace(truth, seeds=seeds)
    found = coverage(truth, sweeps=1500, seed=1)
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(300):
        dice = truth.draw(rng)
        low, high = redrawn(dice[-2] - dice[-1], rng)
        drawn.append(low <= 0 <= high)
    logging.info("%s: %s, bootstrap of the last pair %.3f", truth, found, np.mean(drawn))
    wild = truth.wild > 1
    assert 0.92 <= found["cell"] <= 0.98
    assert 0.92 <= found["pair"] <= (0.998 if wild or truth.shared else 0.985)
    # the price of a pooled spread: two cells that are both wilder than the others are covered a little less
    assert found["last"] >= (0.86 if wild else 0.92)
    assert 0.92 <= found["main"] <= 0.99
    # two cells of two seeds have two degrees of freedom between them, and Satterthwaite's answer is a little too sure
    assert found["false"] <= (0.08 if wild or truth.cells * truth.seeds == 4 else 0.065)
