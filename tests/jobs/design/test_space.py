"""What a search draws from, and what it draws."""

import hashlib
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.design.expansion import Cell, expand
from jobs.design.space import parse_distribution, quantile
from jobs.design.spec import parse_axes, parse_settings, parse_spec
from jobs.search.journal import to_optuna
from petseg.config.values import trial_id


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"min": 0, "max": 1, "distribution": "beta"}, "'beta' is not known: choose one of categorical, int_uniform"),
        ({"min": 0}, "uniform needs 'max'"),
        ({"min": 0, "max": 1, "mu": 2}, "'mu' does not go with int_uniform: it takes min, max"),
        ({"min": 0.0, "max": 1.0, "q": 0.1}, "'q' does not go with uniform"),
        ({"min": 2, "max": 1}, "min 2 is more than max 1"),
        ({"min": 0.5, "max": 1, "distribution": "int_uniform"}, "int_uniform needs whole numbers"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "needs a min above 0"),
        ({"min": 1, "max": 2, "q": 5, "distribution": "q_uniform"}, "no multiple of q = 5 lies in"),
        ({"min": 1, "max": 2, "q": 0, "distribution": "q_uniform"}, "q = 0: must be positive"),
        ({"min": "few", "max": 2.0}, "min = 'few': must be a number"),
        ({"min": True, "max": False}, "min = True: must be a number"),
        ({"values": [[1]]}, r"\[1\] is no value of a config field"),
    ],
)
def test_a_distribution_that_is_not_understood_is_named(entry: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"parameter optim.lr: .*{message}"):
        parse_spec({"method": "random", "run_cap": 2, "parameters": {"optim.lr": entry}}, "x")


numbers = st.floats(-1e6, 1e6)

distributions = st.one_of(
    st.lists(st.sampled_from([1, 2.5, "a", None, True]), min_size=1, unique_by=lambda v: (type(v), v)).map(
        lambda values: {"values": values}
    ),
    st.tuples(st.integers(-99, 99), st.integers(0, 99)).map(lambda p: {"min": p[0], "max": p[0] + p[1]}),
    st.tuples(numbers, numbers).map(lambda p: {"min": min(p), "max": max(p)}),
    st.tuples(st.floats(1e-9, 1e9), st.floats(1, 1e9)).map(
        lambda p: {"min": p[0], "max": p[0] * p[1], "distribution": "log_uniform_values"}
    ),
    st.tuples(st.integers(-50, 50), st.integers(0, 50), st.sampled_from([0.001, 0.05, 0.1, 1, 8])).map(
        lambda p: {"min": p[0] * p[2], "max": (p[0] + p[1]) * p[2], "q": p[2], "distribution": "q_uniform"}
    ),
)


@given(distributions, st.floats(0, 1, exclude_max=True))
def test_a_distribution_survives_its_file_and_draws_what_it_says(entry: dict, u: float) -> None:
    found = parse_distribution("x", entry)
    assert parse_distribution("x", found.to_dict()) == found
    value = found.at(u)
    assert found.settle(value) == value
    if found.kind == "categorical":
        assert value in found.values
    else:
        assert found.low - 1e-9 <= value <= found.high + 1e-9
    assert to_optuna(found)._contains(to_optuna(found).to_internal_repr(value))


def test_quantiles_by_hand() -> None:
    log = parse_distribution("x", {"min": 1e-5, "max": 1e-1, "distribution": "log_uniform_values"})
    assert [log.at(u) for u in (0, 0.25, 0.5, 0.75)] == [1e-5, 1e-4, 1e-3, 1e-2]
    steps = parse_distribution("x", {"min": 0.0, "max": 0.2, "q": 0.05, "distribution": "q_uniform"})
    assert [steps.at(u) for u in (0, 0.2, 0.4, 0.6, 0.99)] == [0, 0.05, 0.1, 0.15, 0.2]
    assert parse_distribution("x", {"min": 1, "max": 4}).at(0.999) == 4
    assert parse_distribution("x", {"min": 1, "max": 4.0}).kind == "uniform"
    assert parse_distribution("x", {"min": "1e-5", "max": "1e-1"}).high == 0.1  # as YAML reads 1e-1


SEARCH = {
    "method": "random",
    "parameters": {
        "optim.lr": {"min": 1e-5, "max": 1e-1, "distribution": "log_uniform_values"},
        "train.batch_size": {"min": 8, "max": 64, "q": 8, "distribution": "q_uniform"},
        "augment.policy": {"values": ["none", "elastic"]},
    },
}


def searched(**top: object) -> list[Cell]:
    return expand(parse_spec({**SEARCH, **top}, "x"))


@pytest.mark.slow
@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_a_random_search_is_the_same_again_and_only_grows(count: int, more: int, seed: int) -> None:
    cells = searched(run_cap=count, seed=seed)
    assert len(cells) == len({trial_id(cell.config, "m") for cell in cells}) == count
    assert searched(run_cap=count + more, seed=seed)[:count] == cells
    assert searched(run_cap=count, seed=seed + 1) != cells
    assert cells[0].axes.keys() == SEARCH["parameters"].keys()
    assert {type(cell.config.train.batch_size) for cell in cells} == {int}


def test_a_draw_does_not_depend_on_what_else_is_drawn() -> None:
    parameters = {"train.seed": {"min": 0, "max": 9}, **SEARCH["parameters"]}
    more = searched(run_cap=5, parameters=parameters)
    assert [cell.axes["optim.lr"] for cell in more] == [cell.axes["optim.lr"] for cell in searched(run_cap=5)]


def test_the_first_draws_are_these_for_ever() -> None:
    """10 ** (-5 + 4 u), by hand from the first 53 bits of sha256("0/optim.lr/0") and so on."""
    assert [cell.axes["optim.lr"] for cell in searched(run_cap=3)] == [0.0945656, 0.00108068, 0.00018673]


@pytest.mark.slow
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40))
def test_a_finite_space_is_drawn_without_repetition_until_it_is_used_up(a: int, b: int, cap: int) -> None:
    parameters = {"train.seed": {"min": 0, "max": a - 1}, "train.epochs": {"values": list(range(1, b + 1))}}
    cells = searched(run_cap=cap, parameters=parameters)
    assert len({(cell.config.train.seed, cell.config.train.epochs) for cell in cells}) == len(cells) == min(cap, a * b)


def test_a_continuum_of_one_value_ends() -> None:
    assert len(searched(run_cap=9, parameters={"optim.lr": {"min": 0.1, "max": 0.1}})) == 1


def test_flags_fix_what_a_search_draws_and_add_to_it() -> None:
    spec = parse_spec({**SEARCH, "run_cap": 4}, "x")
    changed = spec.changed(parse_axes(["train.seed=0,1"]), parse_settings(["optim.lr=0.1"], "--set"))
    assert changed.names == ("train.batch_size", "augment.policy", "train.seed")
    assert {cell.config.optim.lr for cell in expand(changed)} == {0.1}


def test_a_draw_that_cannot_run_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"can draw train.batch_size 2[57], which .* multiple of train.accumulation_ste"
    ):
        searched(
            run_cap=4,
            parameters={"train.batch_size": {"values": [25, 27]}, "train.accumulation_steps": {"value": 2}},
        )


def test_what_decides_the_meaning_of_a_dice_is_not_searched() -> None:
    parameters = {"data.image_size_px": {"values": [64, 128]}}
    assert len(searched(run_cap=2, parameters=parameters)) == 2
    for more in ({"method": "bayes"}, {"early_terminate": {"type": "hyperband", "min_iter": 1}}):
        with pytest.raises(ValueError, match=r"data.image_size_px decides what a Dice means"):
            searched(run_cap=2, parameters=parameters, **more)


@pytest.mark.parametrize(
    ("entry", "size", "ends", "settled"),
    [
        ({"values": ["a", 1, None]}, 3, ("a", None), {"x": "x"}),
        ({"min": 2, "max": 5}, 4, (2, 5), {3.0: 3}),
        ({"min": -1, "max": -1}, 1, (-1, -1), {}),
        ({"min": 5, "max": 63, "q": 8, "distribution": "q_uniform"}, 7, (8.0, 56.0), {23.9: 24.0}),
        ({"min": 0.1, "max": 0.3, "q": 0.1, "distribution": "q_uniform"}, 3, (0.1, 0.3), {0.2000001: 0.2}),
        ({"min": 0.5, "max": 2.5}, math.inf, (0.5, 2.5), {1.23456789: 1.23457, 9.0: 2.5, 0.1: 0.5}),
        ({"min": 1e-5, "max": 1e-1, "distribution": "log_uniform_values"}, math.inf, (1e-5, 0.1), {1.0: 0.1}),
    ],
)
def test_a_distribution_reaches_both_ends(
    entry: dict[str, Any], size: float, ends: tuple[Any, Any], settled: dict[Any, Any]
) -> None:
    found = parse_distribution("x", entry)
    assert found.size == size
    assert (found.at(0.0), found.at(1 - 2**-53)) == ends
    assert {value: found.settle(value) for value in settled} == settled


def test_a_quantile_is_53_bits_of_a_hash() -> None:
    digest = hashlib.sha256(b"3/optim.lr/7").digest()
    assert quantile(3, "optim.lr", 7) == (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    assert len({quantile(*of) for of in ((3, "a", 7), (4, "a", 7), (3, "b", 7), (3, "a", 8))}) == 4


@pytest.mark.parametrize(
    ("entry", "form"),
    [
        ({"values": [1]}, {"distribution": "categorical", "values": [1]}),
        ({"min": 1, "max": 2}, {"distribution": "int_uniform", "min": 1, "max": 2}),
        ({"min": 1, "max": 2.0}, {"distribution": "uniform", "min": 1.0, "max": 2.0}),
        ({"min": 1, "max": 2, "distribution": "q_uniform"},
         {"distribution": "q_uniform", "min": 1.0, "max": 2.0, "q": 1.0}),
    ],
)  # fmt: skip
def test_a_distribution_is_written_in_full(entry: dict[str, Any], form: dict[str, Any]) -> None:
    assert parse_distribution("x", entry).to_dict() == form
    assert {name: type(value) for name, value in parse_distribution("x", entry).to_dict().items()} == {
        name: type(value) for name, value in form.items()
    }
