"""Contrasts of cells: what enters them, by cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jobs.reporting.statistics import compare
from jobs.reporting.statistics.compare import Cells, contrasts, draw_errors, first_minus_second, means, pairs, summarise

TINY = float(np.finfo(float).tiny)


def cells_of(seeds: list[int], num_pictures: int = 100, mean: float = 0.0, run_variance: float = 1e-5) -> Cells:
    count = len(seeds)
    several = np.array(seeds) > 1
    variance = np.where(several, run_variance, 0.0)
    return Cells(np.full(count, mean), np.array(seeds), num_pictures, 1e-4 * np.eye(count), variance, np.zeros(count))


@pytest.mark.parametrize("num_pictures", [3, 4, 9])
def test_errors_over_pictures_alone_are_those_of_student(num_pictures: int) -> None:
    """Runs that do not differ leave the pictures, with one degree of freedom less than there are."""
    cells = cells_of([2, 2], num_pictures, run_variance=0.0)
    errors = draw_errors(cells, 40_000, np.random.default_rng(0))
    for share in (0.5, 0.8, 0.95):
        expected = stats.t.ppf(0.5 + share / 2, num_pictures - 1) * (1e-4 / num_pictures) ** 0.5
        assert np.quantile(np.abs(errors[0]), share) == pytest.approx(expected, rel=0.04)


def test_a_contrast_is_known_over_pictures_alone_if_a_cell_of_one_run_enters_it() -> None:
    weights = np.array([[1.0, 0.0, -1.0], [0.5, 0.5, -1.0], [0.0, 1.0, -1.0], [0.0, -0.5, 0.5], [0.5, 0.0, -0.5]])
    found = contrasts(cells_of([2, 1, 3]), weights)
    assert found.pictures_only.tolist() == [False, True, True, True, False]
    assert np.isnan(found.p).tolist() == [False, True, True, True, False]


def test_weights_meet_their_own_cells() -> None:
    """The variance over pictures of one cell's half against the other's whole, with what they share."""
    dice = np.random.default_rng(0).normal(0.8, [[0.1], [0.02]], (2, 50))
    cells = summarise([dice[:1], dice[1:]])
    found = contrasts(cells, np.array([[0.5, -1.0], [1.0, 0.0]]))
    for row, values in enumerate((0.5 * dice[0] - dice[1], dice[0])):
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.low[row], found.high[row]) == pytest.approx((expected.low, expected.high))


def test_one_run_each_on_several_sets_of_pictures_is_the_paired_t_test_of_each() -> None:
    """Neither cell spreads as the other does, and they share a part."""
    sets = []
    for count in (20, 50):
        shared = np.random.default_rng(count).normal(0.8, 0.02, count)
        one, other = shared + 0.03 * np.cos(np.arange(count)), shared + 0.01 * np.sin(np.arange(count) ** 2)
        sets.append((one[None], other[None], np.full((1, count), 0.5)))
    compared = first_minus_second([summarise(one) for one in sets])
    for row, (one, other, _) in enumerate(sets):
        expected = stats.ttest_rel(one[0], other[0]).confidence_interval(0.95)
        assert (compared.low[row], compared.high[row]) == pytest.approx((expected.low, expected.high))
    assert compared.pictures_only.tolist() == [True, True]


def test_a_third_cell_of_one_run_is_none_of_the_first_two() -> None:
    assert first_minus_second([cells_of([2, 2, 1]), cells_of([1, 2, 2])]).pictures_only.tolist() == [False, True]


@pytest.mark.parametrize(("cells", "draws"), [(12, 19_999), (13, 7_999), (61, 1_999)])
def test_the_more_cells_the_fewer_draws_and_always_a_share_of_5_per_cent(cells: int, draws: int) -> None:
    drawn = cells_of([2] * cells).errors
    assert drawn.shape == (cells, draws)
    assert (draws + 1) % 20 == 0


def test_cells_of_one_run_have_no_error_of_their_own_and_leave_others_theirs() -> None:
    errors = draw_errors(cells_of([1, 3, 1, 2]), 99, np.random.default_rng(0))
    assert (errors == 0).all(axis=1).tolist() == [True, False, True, False]
    assert (draw_errors(cells_of([1, 1]), 99, np.random.default_rng(0)) == 0).all()


def test_the_mean_of_a_cell_lies_in_the_middle_of_its_interval() -> None:
    found = means(cells_of([1, 3], mean=0.5))
    assert found.value.tolist() == [0.5, 0.5]
    assert found.high - 0.5 == pytest.approx(0.5 - found.low)
    assert found.pictures_only.tolist() == [True, False]
    student = stats.t.ppf(0.975, 99) * (1e-4 / 100) ** 0.5
    assert found.high[0] - 0.5 == pytest.approx(student)
    assert found.high[1] - 0.5 > student  # another run would move it too


def test_all_pairs_of_three_cells() -> None:
    """Row minus column, and one seed of a cell makes its own row and column unknown, its place with itself too."""
    found = pairs(summarise([np.array([[0.5, 0.7]]), np.array([[0.4, 0.2], [0.4, 0.4]]), np.array([[0.9, 0.9]] * 2)]))
    assert found.value == pytest.approx(np.array([[0, 0.25, -0.3], [-0.25, 0, -0.55], [0.3, 0.55, 0]]))
    assert found.pictures_only.tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    assert np.isnan(np.diag(found.p)).all()
    assert (found.p[1, 2], found.low[1, 2]) == (found.p[2, 1], -found.high[2, 1])


def test_many_contrasts_are_compared_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of seven is left over."""
    cells = summarise([np.random.default_rng(seed).normal(0.8, 0.02, (3, 9)) for seed in range(5)])
    one = np.eye(5)
    weights = np.array([one[i] - one[j] for i, j in ((0, 1), (1, 2), (2, 3), (0, 3), (1, 4), (3, 4), (0, 2))])
    whole = contrasts(cells, weights)
    monkeypatch.setattr(compare, "CHUNK", 2 * cells.errors.shape[1])
    for name in ("value", "low", "high", "p"):
        assert getattr(contrasts(cells, weights), name).tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize(
    ("value", "reach", "p", "low", "high"),
    [
        (0.5, 0.5, 0.01, TINY, 1.0),  # by rounding, 0 would seem to be within
        (-0.5, 0.5, 0.01, -1.0, -TINY),
        (0.5, 0.25, 0.05, 0.0, 0.75),  # and here outside
        (-0.5, 0.25, 0.05, -0.75, 0.0),
        (0.5, 0.25, 0.01, 0.25, 0.75),
        (-0.5, 0.25, 0.01, -0.75, -0.25),
        (0.5, 0.75, 0.3, -0.25, 1.25),
        (0.5, 0.25, np.nan, 0.25, 0.75),  # not tested: as it is
    ],
)
def test_ends_and_p_values_agree(value: float, reach: float, p: float, low: float, high: float) -> None:
    ends = compare._ends(np.array([value]), np.array([reach]), np.array([p]))
    assert [end.tolist() for end in ends] == [[low], [high]]
