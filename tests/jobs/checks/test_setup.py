"""What the doctor's checks share: which cells they look at, and parts that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.checks.setup import Command, NotChecked, Setup
from jobs.design.expansion import expand
from jobs.design.spec import Spec
from shards.command import Failure


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(Command(), tmp_path)


@pytest.mark.parametrize(
    ("policies", "chosen"),
    [
        (["none", "elastic", "elastic_crop"], "elastic_crop"),
        (["elastic", "elastic_crop", "none"], "elastic_crop"),  # the last one that augments
        (["elastic", "none"], "elastic"),
        (["none"], "none"),
    ],
)
def test_the_small_run_augments_where_the_sweep_does(setup: Setup, policies: list[str], chosen: str) -> None:
    setup.cells = expand(Spec("lab", {"augment.policy": policies, "model.width": [8, 16]}, {}))
    assert (setup.augmented.augment.policy, setup.augmented.model.width) == (chosen, 16)


def test_each_kind_of_cell_is_looked_at_once_by_its_first(setup: Setup) -> None:
    setup.cells = expand(Spec("lab", {"augment.policy": ["none", "elastic"], "model.width": [8, 16]}, {}))
    kinds = setup.distinct(lambda config: config.model.width)
    assert [(config.augment.policy, config.model.width) for config in kinds] == [("none", 8), ("none", 16)]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("no such set"), "no such set"),
        (Failure("a shard is broken"), "a shard is broken"),
        (KeyError("dice"), "KeyError: 'dice'"),  # a bug's message says little
        (NotChecked("shards", "no such set"), "no such set"),
    ],
)
def test_a_part_that_cannot_be_had_is_tried_once_and_its_root_is_named(
    setup: Setup, error: Exception, why: str
) -> None:
    tried: list[int] = []

    def build() -> None:
        tried.append(1)
        raise error

    for _ in range(2):
        with pytest.raises(NotChecked) as told:
            setup._once("run", build)
        assert told.value.why == why
        assert told.value.root == ("shards" if isinstance(error, NotChecked) else "run")
    assert len(tried) == 1
    assert setup._once("shards", lambda: 7) == 7
