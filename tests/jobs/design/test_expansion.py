"""Which cells a sweep has: the order of a grid, what a search draws first, and when its space is used up."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

import pytest

from jobs.design import expansion
from jobs.design.expansion import STARTUP, cell_of, draws, expand, field_value
from jobs.design.plain_yaml import MAX_VALUES, parse_yaml
from jobs.design.space import Distribution
from jobs.design.spec import Spec
from petseg.config import RunConfig
from petseg.config.values import with_values


def search(method: str, run_cap: int, seed: int = 0, **space: Distribution) -> Spec:
    named = {name.replace("__", "."): one for name, one in space.items()}
    return Spec("x", {}, method=method, space=named, run_cap=run_cap, seed=seed)


SEEDS = Distribution("int_uniform", low=0, high=99)


@pytest.mark.parametrize(
    ("method", "run_cap", "count"),
    [("random", 30, 30), ("bayes", 30, STARTUP), ("bayes", 3, 3), ("bayes", STARTUP, STARTUP), ("random", 1, 1)],
)
def test_a_search_that_learns_draws_a_few_cells_by_chance_first(method: str, run_cap: int, count: int) -> None:
    cells = expand(search(method, run_cap, train__seed=SEEDS))
    assert len(cells) == count
    assert cells == expand(search("random", 30, train__seed=SEEDS))[:count]
    assert cells != expand(search("random", 30, seed=1, train__seed=SEEDS))[:count]


def test_the_last_axis_of_a_grid_varies_fastest_and_values_have_their_type() -> None:
    spec = Spec("x", {"optim.lr": ["1e-3", 0.1], "train.seed": [1, 0]}, {"train.epochs": 7})
    cells = expand(spec, with_values(RunConfig(), {"model.width": 8}))
    assert [tuple(cell.axes.values()) for cell in cells] == [(0.001, 1), (0.001, 0), (0.1, 1), (0.1, 0)]
    assert cells[0].drawn == {"optim.lr": "1e-3", "train.seed": 1}  # as the file has it
    assert {(cell.config.train.epochs, cell.config.model.width) for cell in cells} == {(7, 8)}
    assert [cell.axes["train.seed"] for cell in expand(Spec("x", {"train.seed": [3, 4, 5]}, run_cap=2))] == [3, 4]
    with pytest.raises(ValueError, match=r"model\.colour"):
        expand(Spec("x", {"model.colour": [1]}))


def test_a_finite_space_is_drawn_until_it_is_used_up() -> None:
    three = Distribution("int_uniform", low=0, high=2)
    spec = search("random", 99, train__seed=three, optim__name=Distribution("categorical", ("sgd", "adam")))
    cells = expand(spec)
    assert sorted((cell.config.optim.name, cell.config.train.seed) for cell in cells) == [
        (name, seed) for name in ("adam", "sgd") for seed in range(3)
    ]


def test_a_space_in_which_nothing_new_comes_is_taken_as_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A space with two values that are the same to the config seems to have two cells."""
    monkeypatch.setattr(expansion, "MISSES_PER_CELL", 3)
    asked: list[int] = []

    def quantile(seed: int, name: str, number: int) -> float:
        asked.append(number)
        return 0.0

    monkeypatch.setattr(expansion, "quantile", quantile)
    spec = search("random", 9, optim__lr=Distribution("categorical", ("1e-3", 0.001)))
    assert len(expand(spec)) == 1
    assert asked == list(range(7))  # three misses for it and for the next one


def test_a_draw_that_cannot_run_names_all_that_was_drawn() -> None:
    spec = search("random", 9, train__epochs=Distribution("categorical", (0,)), train__seed=SEEDS)
    seed = next(draws(search("random", 9, train__seed=SEEDS), RunConfig())).config.train.seed
    told = rf"^the search can draw train\.epochs 0, train\.seed {seed}, which cannot run: "
    with pytest.raises(ValueError, match=told):
        expand(spec)


def test_more_draws_leave_the_first_as_they_are() -> None:
    spec = search("random", 5, train__seed=SEEDS)
    assert list(islice(draws(spec, RunConfig()), 20))[:5] == expand(spec)


@pytest.mark.parametrize("name", ["data.image_size_px", "data.fit", "data.border", "data.target", "data.shards"])
def test_a_search_does_not_choose_what_a_dice_means(name: str) -> None:
    spec = search("bayes", 5).changed({}, {})
    chosen = Spec("x", {}, method="bayes", run_cap=5, space={name: Distribution("categorical", (1, 2))})
    assert list(draws(spec, RunConfig())) != []
    with pytest.raises(ValueError, match=rf"^parameter {name} decides what a Dice means: a search cannot choose it"):
        next(draws(chosen, RunConfig()))


def test_a_field_is_found_by_its_dotted_name() -> None:
    config = with_values(RunConfig(), {"train.seed": 7})
    assert field_value(config, "train.seed") == 7
    assert field_value(config, "train") == config.train
    spec = Spec("x", {"train.seed": [1]}, {"train.seed": 3})
    assert cell_of(spec, RunConfig(), {"train.seed": 1}).axes == {"train.seed": 1}  # what varies goes before


@pytest.mark.parametrize(
    ("text", "content"),
    [("1e-3", "1e-3"), ("[1, null, no]", [1, None, False]), ("", None), ("{a: {b: 1}}", {"a": {"b": 1}})],
)
def test_yaml_becomes_plain_values(text: str, content: Any) -> None:
    assert parse_yaml(text) == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "while parsing a flow node"),
        ("[" * 600, "nested too deeply"),
        ("&a [*a]", f"it stands for more than {MAX_VALUES:,} values"),
        ("{a: 1, 'a': 2}", "the key 'a' stands on line 1 and again on line 1: keep one of them"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_yaml_that_nobody_means_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        parse_yaml(text)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
