"""The parts of a verdict, from differences and means that are written down here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.reporting.statistics import power_wording, wording
from jobs.reporting.statistics.compare import Cells
from jobs.reporting.statistics.power import Noise
from jobs.reporting.statistics.power_wording import planned_text, power_points
from jobs.reporting.statistics.records import Spread
from jobs.reporting.statistics.verdict import Difference, Effects, Mean


def group(label: str, dice: float = 0.9, unfinished: bool = False) -> Any:
    record = SimpleNamespace(result=None if unfinished else "a result")
    spread = Spread(dice, None, dice, dice, 1)
    return SimpleNamespace(label=label, key=(label,), spread=lambda metric: spread, records=[record], done=[record])


def cells_of(*seeds: int, run_variance: float = 1e-5, both: float = 1e-5) -> Cells:
    count = len(seeds)
    variance, rest = (np.where(np.array(seeds) > 1, value, 0.0) for value in (run_variance, both))
    return Cells(np.zeros(count), np.array(seeds), 368, np.eye(count), variance, rest)


def apart(name: str, other: str) -> Difference:
    return Difference(name, other, 0.02, 0.01, 0.03, 0.01)


def still_open(name: str, other: str, value: float = 0.01) -> Difference:
    return Difference(name, other, value, -0.02, 0.05, 0.4)


def unknown(name: str, other: str) -> Difference:
    return Difference(name, other, 0.01, -0.02, 0.05, None)


class Val:
    """A comparison of cells, the best first, with the differences of the first from the others."""

    def __init__(self, labels: str, *differences: Difference, cells: Cells | None = None, left_out: Any = ()) -> None:
        self.groups = tuple(group(label) for label in labels)
        self.cells = cells or cells_of(*[3] * len(labels))
        self.means = {one.key: Mean(0.9, 0.88, 0.92, False, (1, 2)) for one in self.groups}
        self.left_out, self.units, self.num_pictures = tuple(left_out), None, 368
        self.noise: Noise | None = None
        self._differences = differences

    def difference(self, i: int, j: int) -> Difference:
        assert i == 0
        return self._differences[j - 1]

    def mean(self, of: Any) -> Mean | None:
        return self.means.get(of.key)


def board_of(val: Any, **more: Any) -> Any:
    groups = [*val.groups, *val.left_out]
    facts = {"val": val, "groups": groups, "axes": ["model.arch"], "sets": (), "main": [], "interaction": None}
    return SimpleNamespace(**facts | {"by_split": {"val": val}} | more)


OPEN = "0.0100 [\N{MINUS SIGN}0.0200, 0.0500], p = 0.400"
HIGHEST = "a has the highest mean val Dice, 0.9000 [0.8800, 0.9200] (3 seeds, 368 pictures)"


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ("A", f"{HIGHEST}, and is shown to be better than b."),
        ("AA", f"{HIGHEST}, and is shown to be better than all 2 others."),
        ("OO", f"No winner: {HIGHEST}, but is not shown to be better than b, c."),
        ("OA", f"{HIGHEST}. It is shown to be better than 1 of 2 others, but not than b."),
        ("=A", f"{HIGHEST}; so has b. It is shown to be better than 1 of 2 others."),
        ("==", f"No winner: {HIGHEST}; so have b, c."),
        ("=O", f"No winner: {HIGHEST}; so has b, but is not shown to be better than c."),
        ("UA", f"{HIGHEST}. It is shown to be better than 1 of 2 others, but not than b."),
    ],
)
def test_the_lead_says_whom_the_best_cell_is_shown_to_beat(differences: str, words: str) -> None:
    make = {"A": apart, "O": still_open, "U": unknown, "=": lambda one, other: still_open(one, other, 0.0)}
    others = "bc"[: len(differences)]
    val = Val(f"a{others}", *(make[kind]("a", other) for kind, other in zip(differences, others, strict=True)))
    assert wording.lead(board_of(val)) == words


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ((1, 1), "but with one seed each it is not known whether it is better: another seed may turn it round."),
        ((1, 3), "but with one seed of it it is not known whether it is better: another seed may turn it round."),
        ((3, 1), "but b has one seed, so it is not known whether it is better."),
        ((3, 1, 1), "but b, c have one seed, so it is not known whether it is better."),
    ],
)
def test_where_seeds_are_missing_the_cells_without_them_are_named(seeds: tuple[int, ...], words: str) -> None:
    labels = "abc"[: len(seeds)]
    val = Val(labels, *(unknown("a", label) for label in labels[1:]), cells=cells_of(*seeds))
    assert wording.lead(board_of(val)).endswith(f"pictures), {words}")


def test_one_cell_is_compared_with_none_for_one_of_three_reasons() -> None:
    alone = "a has a mean val Dice of 0.9000 [0.8800, 0.9200] (3 seeds, 368 pictures)"
    left_out = Val("a", left_out=[group("b")])
    assert wording.lead(board_of(left_out)) == (
        f"{alone}. No other cell was measured on the same pictures, so it is compared with none."
    )
    waiting = board_of(Val("a"), groups=[group("a"), group("b", unfinished=True)])
    assert wording.lead(waiting) == f"{alone}. It is the only cell with a result so far, so it is compared with none."
    assert wording.lead(board_of(Val("a"))) == f"{alone}. The sweep has no other cell to compare it with."


def test_a_finished_cell_without_pictures_is_told_from_none_at_all() -> None:
    waiting, done = SimpleNamespace(done=[]), SimpleNamespace(done=["a result"])
    without: Any = SimpleNamespace(val=None, groups=[waiting, done])
    assert wording.lead(without) == (
        "Nothing can be compared: no finished cell has the Dice of two val pictures or more, in each of its trials."
    )
    nothing: Any = SimpleNamespace(val=None, groups=[waiting])
    assert wording.verdict_of(nothing) == wording.Verdict("Nothing can be compared yet: no trial has finished.")


@pytest.mark.parametrize(
    ("dice", "unfinished", "words"),
    [
        (0.8, False, "a has the highest mean val Dice"),
        (0.9, False, "a has the highest mean val Dice"),
        (0.95, False, "Of the cells measured on the same pictures a has the highest mean val Dice"),
        (0.95, True, "Of the cells measured on the same pictures a has the highest mean val Dice so far"),
    ],
)
def test_the_highest_of_those_compared_is_not_that_of_all(dice: float, unfinished: bool, words: str) -> None:
    val = Val("ab", apart("a", "b"), left_out=[group("c", dice)])
    board = board_of(val, groups=[*val.groups, group("c", dice, unfinished)])
    assert wording.lead(board).startswith(f"{words}, 0.9000")


def test_the_best_is_compared_with_the_next_only_where_axes_are_averaged() -> None:
    val: Any = Val("abcdefgh", *(still_open("a", label) for label in "bcdefgh"))
    brief, whole = (wording._cells(val, brief=brief) for brief in (True, False))
    assert [line.split(":")[0] for line in brief] == ["a against b"]
    assert [line.split(":")[0] for line in whole] == [f"a against {label}" for label in "bcdefg"]  # the first six


def test_a_main_effect_is_averaged_over_the_other_axes() -> None:
    main = [Effects(("model.arch",), (apart("unet", "fcn"),)), Effects(("optim.lr",), (still_open("lr=1", "lr=2"),))]
    board = board_of(Val("ab", apart("a", "b")), main=main, axes=["model.arch", "optim.lr", "data.fit"])
    assert wording._main(board) == [
        "arch, averaged over lr, fit: unet beats fcn by 0.0200 [0.0100, 0.0300], p = 0.010.",
        f"lr, averaged over arch, fit: lr=1 against lr=2: no difference shown ({OPEN}).",
    ]


def test_an_interaction_is_told_with_its_differences_or_with_what_is_not_ruled_out() -> None:
    def said(*differences: Difference) -> list[str]:
        return wording._interaction(Effects(("model.arch", "augment.policy"), differences))

    shown = apart("crop over none with unet", "with fcn")
    listed = "crop over none with unet differs from with fcn by 0.0200 [0.0100, 0.0300], p = 0.010"
    assert said(shown, still_open("x", "y")) == [
        f"What policy does depends on arch, so read their averages with care: {listed}."
    ]
    assert said(unknown("a", "b"), still_open("a", "b")) == []
    low = Difference("a", "b", -0.01, -0.07, 0.05, 0.4)
    assert said(low, still_open("a", "b")) == [
        "That policy does more for one arch than for another is not shown; up to 0.070 is not ruled out."
    ]
    assert wording._interaction(None) == said() == []
    assert said(*[shown] * 7)[0].count("differs from") == wording.MAX_NAMED


def test_test_numbers_are_those_of_the_best_on_val() -> None:
    val: Any = Val("ab", apart("a", "b"))
    mean = Mean(0.8, 0.7, 0.9, False, (1, 1))
    test = SimpleNamespace(num_pictures=3669, mean=lambda of: mean if of.label == "a" else None)
    (said,) = wording._test(board_of(val, by_split={"val": val, "test": test}), val)
    assert said == (
        "On test (3,669 pictures, which chose nothing) a has 0.8000 [0.7000, 0.9000]: its val mean was picked as the "
        "highest, and says a little too much."
    )
    other: Any = Val("ba", apart("b", "a"))
    assert wording._test(board_of(other, by_split={"val": other, "test": test}), other) == []
    assert wording._test(board_of(val), val) == []


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        (cells_of(3, 3, run_variance=0, both=0), "a, b"),
        (cells_of(3, 1, run_variance=0, both=0), "a"),
        (cells_of(3, 3, run_variance=0), ""),  # they differ on single pictures
        (cells_of(3, 3, both=0), ""),
    ],
)
def test_runs_that_are_alike_in_all_are_doubted(cells: Cells, named: str) -> None:
    val: Any = Val("ab", apart("a", "b"), cells=cells)
    said = (
        f"The runs of {named} have the same Dice on every picture, as if they had one seed: look whether the seed does "
        "anything before you believe this."
    )
    assert wording._identical(val) == ([said] if named else [])


NOISE = Noise(0.002, 0.03, 1368)
SIZE = "With {} seeds and 1,368 val pictures a difference of about 0.012 Dice between {} is shown in 80 % of sweeps"
SPREADS = "standard deviation of runs 0.0020, of pictures in a cell 0.030"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked about the power; 0.003 takes 7 seeds, and anything else more than there are."""
    questions: list[tuple[Any, ...]] = []

    def seeds_for(size: float, cells: int, noise: Noise) -> int | None:
        questions.append((size, cells, noise))
        return 7 if size == 0.003 else None

    def least_difference(cells: int, seeds: int, noise: Noise) -> float:
        questions.append((cells, seeds, noise))
        return 0.0123

    monkeypatch.setattr(power_wording, "seeds_for", seeds_for)
    monkeypatch.setattr(power_wording, "least_difference", least_difference)
    return questions


@pytest.mark.parametrize(
    ("gap", "told"),
    [
        (still_open("a", "b", 0.004), True),
        (still_open("a", "b", -0.004), True),
        (Difference("a", "b", 0.0005, -0.001, 0.002, 0.5), True),
        (still_open("a", "b", 0.0004), False),  # nobody's aim
        (apart("a", "b"), False),
        (unknown("a", "b"), False),
    ],
)
def test_what_such_a_sweep_shows_and_what_the_gap_would_take(
    asked: list[tuple[Any, ...]], gap: Difference, told: bool
) -> None:
    """Of the cells with several seeds, by their median."""
    val: Any = Val("abcd", gap, cells=cells_of(3, 1, 5, 5))
    val.noise = NOISE
    (said,) = power_points(val)
    shown, needed = said.split("). ")
    assert f"{shown})" == f"{SIZE.format(5, 'two of the 3 cells')} (by the spreads of these trials: {SPREADS})"
    more = (
        f"{abs(gap.value):.4f}, the gap between the first two, would not be shown so often with 100 seeds: that takes"
    )
    assert needed == f"0.0030 would take about 7 seeds{f'; {more} more val pictures' if told else ''}."
    assert asked[0] == (0.003, 3, NOISE)
    assert asked[-1] == (3, 5, NOISE)


def test_without_any_spread_nothing_is_said_of_the_power(asked: list[tuple[Any, ...]]) -> None:
    val: Any = Val("ab", still_open("a", "b"))
    for noise in (None, Noise(0.0, 0.0, 368)):
        val.noise = noise
        assert power_points(val) == []
    assert asked == []


def test_a_plan_is_judged_by_what_has_finished_of_it(asked: list[tuple[Any, ...]]) -> None:
    known: Any = SimpleNamespace(noise=NOISE)
    assert planned_text(2, 3, 5, known) == (
        f"{SIZE.format(3, 'the two cells')} (by the spreads of finished trials of this sweep: {SPREADS})."
    )
    source = "by a reference on published photos, as no two cells of this sweep have two finished seeds"
    for nothing in (None, SimpleNamespace(noise=None)):
        assert f"({source}: " in planned_text(2, 3, 1368, nothing)  # type: ignore[arg-type]
    assert asked == [(2, 3, NOISE), *[(2, 3, Noise(0.0025, 0.02, 1368))] * 2]
