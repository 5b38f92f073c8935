"""Which trials of a sweep the words mean that people type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs.choose import MAX_LISTED, choose, choose_all, choose_one, listed, matches
from jobs.runs.trial import Sweep, Trial
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two architectures on two seeds; all of the second and nothing else of one word."""
    sweep = sweep_of(tmp_path / "lab", 0)
    places = [("unet", 0), ("unet", 10), ("segformer", 0), ("segformer", 1)]
    trials = [
        Trial(f"{number}a{number}0000000", {"model.arch": arch, "train.seed": seed}, sweep.folder / "trials" / "x")
        for number, (arch, seed) in enumerate(places)
    ]
    return replace(sweep, trials=tuple(trials))


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ("unet", [0, 1]),
        ("seed=0", [0, 2]),
        ("seed=1", [3]),  # whole words
        ("seed=0 segformer", [2]),
        (" 1a1 ", [1]),
        ("unet seed=10", [1]),
        ("0a00000000", [0]),
    ],
)
def test_words_are_the_beginning_of_an_id_or_places_on_the_axes(sweep: Sweep, words: str, chosen: list[int]) -> None:
    assert choose(sweep, words) == [sweep.trials[number] for number in chosen]


def test_a_label_goes_before_trials_that_have_more_words(sweep: Sweep) -> None:
    short = Trial("b" * 10, {"model.arch": "unet"}, Path("x"))
    more = replace(sweep, trials=(*sweep.trials, short))
    assert choose(more, "unet ") == [short]


@pytest.mark.parametrize("words", ["", "  ", "unets", "unet seed=2", "a1"])
def test_words_that_mean_nothing_list_the_trials(sweep: Sweep, words: str) -> None:
    assert not matches(sweep.trials[1], words)
    with pytest.raises(ValueError, match="no trial") as failed:
        choose(sweep, words)
    assert str(failed.value) == f"no trial {words!r} in {sweep.folder}; its trials:\n{listed(sweep.trials)}"


def test_one_trial_is_meant_by_words_of_one(sweep: Sweep) -> None:
    assert choose_one(sweep, "seed=10") == sweep.trials[1]
    with pytest.raises(ValueError, match="means 2 trials") as failed:
        choose_one(sweep, "unet")
    both = "  0a00000000 unet seed=0\n  1a10000000 unet seed=10"
    assert str(failed.value) == f"'unet' means 2 trials of {sweep.folder}, name one:\n{both}"


def test_all_selections_count_once_in_the_order_of_the_sweep(sweep: Sweep) -> None:
    assert choose_all(sweep, ["seed=1", "unet", "seed=10"]) == [sweep.trials[number] for number in (0, 1, 3)]
    assert choose_all(sweep, []) == list(sweep.trials)
    with pytest.raises(ValueError, match="no trial 'x'"):
        choose_all(sweep, ["unet", "x"])


@pytest.mark.parametrize(("count", "more"), [(MAX_LISTED, []), (MAX_LISTED + 1, ["  and 1 more"])])
def test_a_list_of_many_is_cut(count: int, more: list[str]) -> None:
    lines = listed([Trial("a", {"model.arch": "unet"}, Path("x"))] * count).splitlines()
    assert lines == ["  a unet"] * MAX_LISTED + more
