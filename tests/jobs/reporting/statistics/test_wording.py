"""How many cells a sentence names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.reporting.statistics.verdict import Difference
from jobs.reporting.statistics.wording import _names, _sorted, basis, bounds, p_text, sentence


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "a"), (4, "a, b, c, d"), (5, "a, b, c, d, e"), (6, "a, b, c, d and 2 others")],  # "1 others" is never said
)
def test_cells_beyond_the_named_ones_are_several(count: int, words: str) -> None:
    groups: list[Any] = [SimpleNamespace(label=label) for label in "abcdef"[:count]]
    assert _names(groups) == words


@pytest.mark.parametrize(
    ("low", "value", "high", "p", "words"),
    [
        (0.002, 0.004, 0.006, 0.01, "a beats b by 0.0040 [0.0020, 0.0060], p = 0.010"),
        (0.0005, 0.001, 0.0029, 0.01, "a beats b by 0.0010 [0.0005, 0.0029], p = 0.010, though by less than 0.003"),
        (0.0005, 0.001, 0.003, 0.01, "a beats b by 0.0010 [0.0005, 0.0030], p = 0.010"),
        (-0.001, 0.001, 0.0029, 0.5, "a against b: the same within 0.003 (0.0010 [-0.0010, 0.0029], p = 0.500)"),
        (-0.001, 0.001, 0.003, 0.5, "a against b: no difference shown (0.0010 [-0.0010, 0.0030], p = 0.500)"),
        (-0.003, 0.001, 0.002, 0.5, "a against b: no difference shown (0.0010 [-0.0030, 0.0020], p = 0.500)"),
        (
            0.002,
            0.004,
            0.006,
            None,
            "a against b: not known (0.0040 [0.0020, 0.0060] over pictures alone, with one seed)",
        ),
    ],
)
def test_a_difference_in_words_from_either_side(
    low: float, value: float, high: float, p: float | None, words: str
) -> None:
    """The higher one stands first, whoever was compared with whom."""
    words = words.replace("-", "\N{MINUS SIGN}").replace("ONE", "with one seed")
    assert sentence(Difference("a", "b", value, low, high, p)) == words
    assert sentence(Difference("b", "a", -value, -high, -low, p)) == words


def test_what_was_shown_comes_first_and_a_long_list_is_cut_short() -> None:
    def pair(name: str, finding: str) -> Difference:
        low, p = {"apart": (0.01, 0.001), "same": (-0.001, 0.5), "open": (-0.1, 0.5), "unknown": (-0.1, None)}[finding]
        return Difference(name, "x", 0.002, low, 0.02 if finding == "apart" else 0.0025, p)

    mixed = [pair("a", "unknown"), pair("b", "open"), pair("c", "same"), pair("d", "apart")]
    assert [line.split()[0] for line in _sorted(mixed)] == ["d", "c", "b", "a"]
    assert len(_sorted([pair("a", "open")] * 100)) < 100
    assert (
        sum(int(line.split()[1]) if "more pairs" in line else 1 for line in _sorted([pair("a", "open")] * 100)) == 100
    )


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "p = 1"), (0.0004, "p < 0.001"), (0.001, "p = 0.001"), (0.0123, "p = 0.012"), (0.04996, "p = 0.04996"),
     (0.05, "p = 0.050"), (0.0504, "p = 0.050")],
)  # fmt: skip
def test_a_p_value_never_looks_as_if_it_were_on_the_other_side_of_the_level(p: float, text: str) -> None:
    assert p_text(p) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.001, 0.002, "[-0.0010, 0.0020]"),
        (0.00001, 0.002, "[0.00001, 0.0020]"),  # 0 is outside
        (-0.002, -0.000001, "[-0.0020, -0.000001]"),
        (0.0, 0.0, "[0.0000, 0.0000]"),
        (-0.0000001, 0.1, "[0.0000, 0.1000]"),
    ],
)
def test_an_interval_shows_on_which_side_of_0_it_lies(low: float, high: float, text: str) -> None:
    assert bounds(low, high) == text.replace("-", "\N{MINUS SIGN}")


@pytest.mark.parametrize(
    ("seeds", "units", "text"),
    [
        ([3, 3], None, "3 seeds, 368 pictures"),
        ([1, 1], None, "1 seed, 368 pictures"),
        ([3, 1], None, "1-3 seeds, 368 pictures"),
        ([2, 2], [0], "2 seeds, 368 pictures in 12 groups"),
    ],
)
def test_on_what_a_comparison_stands(seeds: list[int], units: list[int] | None, text: str) -> None:
    cells = SimpleNamespace(seeds=np.array(seeds), num_pictures=12)
    comparison: Any = SimpleNamespace(cells=cells, units=units, num_pictures=368)
    assert basis(comparison) == text
