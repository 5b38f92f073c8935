"""Pictures that come in groups, and differences in several sets of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reporting.sections.breakdown.rows import mean_of
from jobs.reporting.statistics.compare import first_minus_second, means, pairs, summarise
from jobs.reporting.statistics.units import by_unit, number_units


def test_units_are_whole_groups() -> None:
    assert number_units(()) is None
    assert number_units(("a", "b", "c")) is None
    assert number_units(("a", "a", "a")) is None  # of a single group nothing is known about others
    units = number_units(("b", "a", "b"))
    assert units is not None
    assert units.tolist() == [1, 0, 1]


@given(st.integers(2, 12), st.integers(2, 5), st.integers(0, 99))
def test_copies_of_a_picture_say_no_more_than_the_picture(num_pictures: int, copies: int, seed: int) -> None:
    dice = np.random.default_rng(seed).random((3, num_pictures))
    units = np.arange(num_pictures).repeat(copies)
    assert by_unit(dice.repeat(copies, axis=1), units) == pytest.approx(dice)
    assert by_unit(dice, None) is dice


@given(st.lists(st.integers(0, 4), min_size=5, max_size=30), st.integers(0, 99))
def test_the_error_is_that_of_a_ratio_of_sums(groups: list[int], seed: int) -> None:
    """Cochran 1977, equation 6.9 without the finite population: G / (G - 1) sum (y_g - R n_g)^2 / N^2."""
    units, dice = np.array(groups), np.random.default_rng(seed).random(len(groups))
    values = by_unit(dice, units)
    assert values.mean() == pytest.approx(dice.mean())
    names = sorted(set(groups))
    assert len(values) == len(names)
    rests = [dice[units == name].sum() - dice.mean() * (units == name).sum() for name in names]
    if len(names) > 1:
        error = len(names) / (len(names) - 1) * np.square(rests).sum() / len(groups) ** 2
        assert values.var(ddof=1) / len(names) == pytest.approx(error)


def test_frames_of_one_video_widen_intervals() -> None:
    rng = np.random.default_rng(0)
    units = np.arange(10).repeat(20)
    runs = [0.8 + 0.05 * rng.standard_normal(10).repeat(20) + 0.01 * rng.standard_normal((3, 200)) for _ in range(2)]
    by_picture, by_video = means(summarise(runs)), means(summarise([by_unit(one, units) for one in runs]))
    assert by_video.value == pytest.approx(by_picture.value)
    assert ((by_video.high - by_video.low) > 3 * (by_picture.high - by_picture.low)).all()
    narrow, wide = mean_of(runs[0][0]), mean_of(runs[0][0], units)
    assert narrow.value == pytest.approx(wide.value)
    assert (wide.reach or 0) > 3 * (narrow.reach or 0)


def test_differences_in_several_sets_of_pictures_are_one_family() -> None:
    rng = np.random.default_rng(1)
    sets = [
        summarise([0.8 + 0.02 * rng.standard_normal((3, count)) for _ in range(2)]) for count in (8, 20, 50, 50, 50)
    ]
    alone, whole = pairs(sets[1]), first_minus_second([sets[1]])
    assert whole.value[0] == alone.value[0, 1]
    assert whole.p[0] == pytest.approx(alone.p[0, 1], abs=0.02)
    family = first_minus_second(sets)
    assert family.value == pytest.approx([one.mean[0] - one.mean[1] for one in sets])
    assert (family.high - family.low)[1] > (whole.high - whole.low)[0]
    assert (family.p[1] >= whole.p[0]).all()
    for low, high, p in zip(family.low, family.high, family.p, strict=True):
        assert (low > 0 or high < 0) == (p < 0.05)


def test_one_seed_is_not_tested() -> None:
    rng = np.random.default_rng(2)
    single = summarise([rng.random((1, 9)), rng.random((3, 9))])
    several = summarise([rng.random((2, 5)), rng.random((3, 5))])
    compared = first_minus_second([single, several])
    assert np.isnan(compared.p[0])
    assert compared.p[1] > 0
    assert compared.low[0] < compared.value[0] < compared.high[0]


def test_a_difference_of_dice_never_leaves_one() -> None:
    """Three pictures, two seeds that disagree: Student's reach alone is far above 1."""
    cells = summarise([np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), np.array([[0.0, 0.2, 0.1], [0.3, 0.0, 0.0]])])
    compared = first_minus_second([cells])
    assert pairs(cells).high[0, 1] > 1
    assert compared.high[0] == 1.0
    assert compared.low[0] == pairs(cells).low[0, 1]  # within [-1, 1]: left alone
