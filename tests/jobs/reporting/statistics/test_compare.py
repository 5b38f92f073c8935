"""Intervals and tests: on cases worked by hand, against scipy, by their laws, and on sweeps of a known truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from benchmarks.verdict import TRUTHS, Truth, false_findings, measure
from jobs.reporting.statistics import spreads
from jobs.reporting.statistics.compare import (
    Cells,
    Intervals,
    contrasts,
    draw_errors,
    means,
    pairs,
    rank_ranges,
    summarise,
)
from jobs.reporting.statistics.spreads import draw_variances

Floats = NDArray[np.float64]


def flat(*runs: float) -> Floats:
    """(S, 40): runs that have the same Dice on all pictures."""
    return np.array(runs)[:, None] * np.ones((1, 40))


def drawn(seed: int, seeds: tuple[int, ...] = (3, 3, 2, 4), pictures: int = 30, run: float = 0.01) -> list[Floats]:
    """Per cell (S, N), whose true means are 0.01 apart."""
    rng = np.random.default_rng(seed)
    picture = 0.08 * rng.standard_normal((1, pictures))
    return [
        0.8 + 0.01 * i + picture + run * rng.standard_normal((s, 1)) + 0.02 * rng.standard_normal((s, pictures))
        for i, s in enumerate(seeds)
    ]


# --- by hand, and against scipy


def test_one_run_each_is_the_paired_t_test_without_a_p_value() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0.9, 0.05, (1, 60))
    b = a + rng.normal(0.01, 0.02, (1, 60))
    cells = summarise([a, b])
    found, expected = pairs(cells), stats.ttest_rel(a[0], b[0]).confidence_interval(0.95)
    assert (found.low[0, 1], found.high[0, 1]) == pytest.approx((expected.low, expected.high))
    assert found.pictures_only.all()
    assert np.isnan(found.p).all()  # no p value makes a finding of one run each
    alone = means(cells)
    one = stats.ttest_1samp(a[0], 0).confidence_interval(0.95)
    assert (alone.low[0], alone.high[0]) == pytest.approx((one.low, one.high))
    assert np.isnan(contrasts(cells, np.array([[1.0, -1.0]])).p).all()


def test_two_cells_that_spread_alike_are_compared_nearly_as_by_student() -> None:
    """Not quite: one of them may be wild."""
    a, b = (0.90, 0.905, 0.907), (0.91, 0.915, 0.917)
    found, student = pairs(summarise([flat(*a), flat(*b)])), stats.ttest_ind(a, b)
    assert student.pvalue < found.p[0, 1] < 1.7 * student.pvalue
    assert found.value[0, 1] == pytest.approx(-0.01)


def test_many_cells_that_spread_alike_have_the_intervals_of_tukey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreads, "WILD_SHARE", 1e-12)
    runs = [tuple(0.9 + 0.002 * i + np.array([-0.003, 0.0, 0.003])) for i in range(5)]
    found, tukey = pairs(summarise([flat(*one) for one in runs])), stats.tukey_hsd(*runs)
    assert found.high - found.value == pytest.approx(
        np.where(np.eye(5) > 0, 0, (tukey.confidence_interval().high - tukey.statistic)), rel=0.05
    )
    assert found.p[0, 1:] == pytest.approx(tukey.pvalue[0, 1:], abs=0.02)


def test_likelihoods_of_spike_and_slab_are_those_of_their_densities() -> None:
    variance, freedom, common = np.array([2.0, 0.3]), np.array([2.0, 3.0]), 1.3

    def density(v: float, i: int) -> float:
        return float(stats.chi2.pdf(variance[i] * freedom[i] / v, freedom[i]) * freedom[i] / v)

    def weighed(log_v: float, i: int) -> float:
        v = math.exp(log_v)
        return (
            density(v, i) * float(stats.chi2.pdf(spreads.WILD_TIMES * common / v, 1)) * spreads.WILD_TIMES * common / v
        )

    spike, slab = spreads._likelihoods(variance, freedom, np.array([[common]]))
    for i in range(2):
        whole, _ = integrate.quad(weighed, -15, 25, args=(i,), limit=400)
        ratio = whole * spreads.WILD_SHARE / (density(common, i) * (1 - spreads.WILD_SHARE))
        assert slab[0, i] - spike[0, i] == pytest.approx(math.log(ratio))


def test_a_wild_cell_has_its_own_spread_and_leaves_the_others_theirs() -> None:
    rng = np.random.default_rng(0)
    freedom = np.full(6, 4.0)
    tame = draw_variances(np.full(6, 1e-5), freedom, 4000, rng)
    wild = draw_variances(np.array([1e-5] * 5 + [1e-3]), freedom, 4000, rng)
    assert np.median(tame, axis=0) == pytest.approx(np.full(6, 1e-5), rel=0.1)
    assert np.median(wild, axis=0)[:5] == pytest.approx(np.full(5, 1e-5), rel=0.15)
    assert np.median(wild, axis=0)[5] == pytest.approx((4e-3 + 4e-5) / stats.chi2.median(5), rel=0.05)


def test_with_many_seeds_each_cell_stands_for_itself() -> None:
    variances = np.array([1e-6, 4e-6, 1e-5, 1e-4])
    found = draw_variances(variances, np.full(4, 400.0), 2000, np.random.default_rng(0))
    assert np.median(found, axis=0) == pytest.approx(variances, rel=0.05)


def test_errors_have_the_variance_of_their_parts() -> None:
    """Two runs on two pictures: V_runs 0.06^2 / 4, V_pictures 0.1^2 / 4, V_both 4 * 0.01^2 / 4."""
    cells = summarise([np.array([[0.80, 0.92], [0.88, 0.96]])])
    assert cells.run_variance == pytest.approx([0.06**2 / 2])
    assert cells.covariance == pytest.approx(np.array([[0.10**2 / 2]]))
    assert cells.both == pytest.approx([4 * 0.01**2])
    many = replace(
        cells, seeds=np.array([900]), num_pictures=900, run_variance=np.array([0.9]), both=np.array([9.0 * 900])
    )
    many = replace(many, covariance=np.array([[900.0]]))
    (errors,) = draw_errors(many, 40_000, np.random.default_rng(0))
    assert errors.var() == pytest.approx(0.9 / 900 + 900 / 900 - 9.0 / 900, rel=0.03)


def test_a_pair_is_a_contrast_and_weights_scale_it() -> None:
    cells = summarise(drawn(1, (3, 3)))
    pair, one = pairs(cells), contrasts(cells, np.array([[1.0, -1.0]]))
    thrice = contrasts(cells, np.array([[3.0, -3.0]]))
    for name in ("value", "low", "high"):
        assert getattr(one, name)[0] == pytest.approx(getattr(pair, name)[0, 1])
        assert getattr(thrice, name)[0] == pytest.approx(3 * getattr(pair, name)[0, 1])
    assert one.p[0] == thrice.p[0] == pair.p[0, 1]


def test_means_have_marginal_and_differences_simultaneous_intervals() -> None:
    two, six = summarise(drawn(2, (3,) * 2)), summarise(drawn(2, (3,) * 6))
    many = replace(six, mean=np.zeros(6), run_variance=np.full(6, 1e-5), covariance=1e-4 * np.eye(6), both=np.zeros(6))
    few = replace(two, mean=np.zeros(2), run_variance=np.full(2, 1e-5), covariance=1e-4 * np.eye(2), both=np.zeros(2))
    assert pairs(many).high[0, 1] > 1.1 * pairs(few).high[0, 1]
    assert means(many).high[0] < means(few).high[0]  # more cells tell more of the spread


def test_pairs_with_a_cell_of_one_run_are_known_over_pictures_alone() -> None:
    found = pairs(summarise(drawn(3, (1, 2, 3, 5))))
    only = [[i == 0 or j == 0 for i in range(4)] for j in range(4)]
    assert found.pictures_only.tolist() == only
    assert np.isnan(found.p).tolist() == [[only[i][j] or i == j for i in range(4)] for j in range(4)]


def test_identical_cells_do_not_differ() -> None:
    found = pairs(summarise([flat(0.9, 0.9), flat(0.9, 0.9)]))
    assert found.p[0, 1] == 1
    assert found.low[0, 1] == found.high[0, 1] == 0


def test_the_limit_lies_between_the_draws_that_p_counts() -> None:
    """999 draws: 48 errors as large as what is seen are p = 0.049, and 49 are 0.050, which shows nothing."""
    cells = Cells(np.zeros(2), np.array([3, 3]), 100, 1e-4 * np.eye(2), np.full(2, 1e-5), np.zeros(2))
    errors = draw_errors(cells, 999, np.random.default_rng(0))
    sizes = np.sort(np.abs(errors[0] - errors[1]))
    for count, excludes in ((48, True), (49, False)):
        seen = (sizes[-count] + sizes[-count - 1]) / 2
        found = pairs(replace(cells, mean=np.array([seen, 0.0])), errors)
        assert found.p[0, 1] == (1 + count) / 1000
        assert (found.low[0, 1] > 0) == excludes
        assert found.high[0, 1] - seen == pytest.approx(seen - found.low[0, 1])
        assert rank_ranges(found).tolist() == ([[1, 1], [2, 2]] if excludes else [[1, 2], [1, 2]])


def test_incomparable_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="same two pictures"):
        summarise([np.ones((2, 3)), np.ones((2, 4))])
    with pytest.raises(ValueError, match="same two pictures"):
        summarise([np.ones((2, 1))])


def test_ranks_span_ties() -> None:
    """The first two are told from the last alone, the third from none."""
    values = np.array([0.930, 0.929, 0.910, 0.900])
    p = np.full((4, 4), 0.2)
    for i in (0, 1):
        p[i, 3] = p[3, i] = 0.01
    value = values[:, None] - values
    found = Intervals(value, value, value, p, np.zeros((4, 4), bool))
    assert rank_ranges(found).tolist() == [[1, 3], [1, 3], [1, 4], [3, 4]]


# --- laws

CELLS = st.lists(
    st.tuples(
        st.integers(5_000, 9_500).map(lambda n: n / 10_000),
        st.integers(1, 5),
        st.floats(0, 0.02),
        st.floats(0, 0.003),
    ),
    min_size=2,
    max_size=6,
    unique_by=lambda row: row[0],
)


def cells_of(rows: list[tuple[float, int, float, float]]) -> Cells:
    """(mean, seeds, sd of runs, sd of run x picture) of each."""
    mean, seeds, run, rest = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    several = seeds > 1
    covariance = 0.0064 + np.diag(0.0004 + rest**2)
    return Cells(mean, seeds.astype(int), 100, covariance, np.where(several, run**2, 0), np.where(several, rest**2, 0))


def quick(cells: Cells) -> Intervals:
    return pairs(cells, draw_errors(cells, 999, np.random.default_rng(0)))


@settings(max_examples=60, deadline=None)
@given(CELLS)
@example([(0.5, 2, 0.015625, 0.0), (0.5001, 3, 0.001953125, 0.0), (0.5391, 5, 0.01849116976664422, 0.0)])  # p = 0.05
def test_an_interval_excludes_0_exactly_where_p_is_below_5_per_cent(
    rows: list[tuple[float, int, float, float]],
) -> None:
    found = quick(cells_of(rows))
    tested = np.isfinite(found.p)
    excludes = (found.low > 0) | (found.high < 0)
    assert (excludes == (found.p < 0.05))[tested].all()
    assert (found.low <= found.value).all() and (found.value <= found.high).all()  # noqa: PT018


@settings(max_examples=40, deadline=None)
@given(CELLS, st.randoms(use_true_random=False))
def test_the_order_of_cells_does_not_matter(rows: list[tuple[float, int, float, float]], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found, turned = quick(cells_of(rows)), quick(cells_of([rows[i] for i in order]))
    for name in ("value", "low", "high", "p"):
        expected = getattr(found, name)[np.ix_(order, order)]
        assert getattr(turned, name) == pytest.approx(expected, nan_ok=True, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(CELLS)
def test_a_shift_of_all_cells_does_not_matter_and_pairs_turn_round(rows: list[tuple[float, int, float, float]]) -> None:
    cells = cells_of(rows)
    found, shifted = quick(cells), quick(replace(cells, mean=cells.mean - 0.25))
    for name in ("value", "low", "high"):
        assert getattr(shifted, name) == pytest.approx(getattr(found, name), abs=1e-9)
    assert shifted.p == pytest.approx(found.p, nan_ok=True, abs=0.002)  # a draw may lie at the very value
    assert (found.low == -found.high.T).all()
    assert found.p == pytest.approx(found.p.T, nan_ok=True)


# --- on drawn sweeps: the rates of benchmarks/verdict.py, as far as few sweeps tell them

ERROR = 2.6  # standard errors: one such test in a hundred would fail by chance, but the seed is fixed


def most(rate: float, sweeps: int) -> float:
    return rate + ERROR * math.sqrt(rate * (1 - rate) / sweeps)


@pytest.mark.parametrize("name", ["6 x 3", "2 x 3", "2 x 2"])
def test_false_findings_stay_below_5_per_cent(name: str) -> None:
    assert false_findings(TRUTHS[name], "report", 300) <= most(0.05, 300)


def test_a_wild_cell_hardly_widens_the_others_intervals() -> None:
    tame, wild = (measure(name, TRUTHS[name], "report", 100) for name in ("6 x 5", "6 x 5, one wild"))
    assert wild.half_width < 1.15 * tame.half_width
    before, after = (measure(name, TRUTHS[name], "holm", 100) for name in ("6 x 5", "6 x 5, one wild"))
    assert after.half_width > 1.25 * before.half_width  # as it was with a pooled spread


def test_no_fewer_differences_are_found_than_with_a_pooled_spread_and_holm() -> None:
    new, old = (measure("6 x 5", TRUTHS["6 x 5"], way, 200) for way in ("report", "holm"))
    assert new.power >= old.power


def test_a_permutation_test_mistakes_run_noise_for_a_difference() -> None:
    """Why pictures alone are no test: of runs that are all alike, most pairs of single runs differ `significantly`."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(200):
        picture, own = 0.08 * rng.standard_normal(100), 0.01 * rng.standard_normal((2, 1))
        dice = picture + own + 0.03 * rng.standard_normal((2, 100))
        p.append(stats.ttest_rel(*dice).pvalue)
    assert np.mean(np.array(p) < 0.05) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "least", "largest"),
    [
        (Truth(), 0.01, 0.05),
        (Truth(seeds=5), 0.01, 0.05),
        (Truth(cells=2), 0.02, 0.05),
        (Truth(cells=2, seeds=2), 0.02, 0.05),
        (Truth(run=0.0), 0.0, 0.05),
        (Truth(run=0.02), 0.01, 0.05),
        (Truth(wild=1), 0.02, 0.075),
        (Truth(wild=2), 0.02, 0.095),
        (Truth(seeds=5, wild=1), 0.02, 0.06),
    ],
)
def test_false_findings_in_many_sweeps(truth: Truth, least: float, largest: float) -> None:
    found = false_findings(truth, "report", 1500, seed=1)
    assert most(least, 1500) - 2 * ERROR * math.sqrt(0.05 * 0.95 / 1500) <= found <= most(largest, 1500)
