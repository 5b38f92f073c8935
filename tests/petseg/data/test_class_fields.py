"""Which fact of a sample is its class, and when a mixing is poor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from petseg.data.mixing import Mixing, class_field, classes_of_keys, evenly, measure_mixing, some_batches
from petseg.data.plan import EpochOrder, global_batch


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ([{"class": i % 2, "label": i % 3} for i in range(6)], "class"),  # the first that has a class
        ([{"class": i, "label": i % 3} for i in range(6)], "label"),  # the other one is an id
        ([{"category": "ab"[i % 2], "species": i % 3} for i in range(6)], "category"),
        ([{"species": i % 3} for i in range(6)], "species"),
        ([{"cls": i % 2 if i else "one"} for i in range(6)], "cls"),  # texts and numbers
        ([{"cls": 0}, {"cls": 1}], None),
        ([{"cls": 0}, {"cls": 1}, {"cls": 1}], "cls"),
        ([{"label": bool(i % 2)} for i in range(6)], None),
        ([{"label": i % 2 / 2} for i in range(6)], None),
        ([{"colour": i % 2} for i in range(6)], None),
        ([{"label": i % 2} for i in range(5)] + [{"label": None}], None),
        ([{"label": i % 2} for i in range(5)] + [["label"]], None),
        ([], None),
    ],
)
def test_the_class_is_a_text_or_a_number_of_several_samples(facts: list[Any], field: str | None) -> None:
    assert class_field(iter(facts)) == field


@pytest.mark.parametrize(
    ("seen", "window", "is_poor"), [(2.999, 1, True), (3.0, 1, False), (1.0, 4, False), (1.0, 3, True)]
)
def test_a_mixing_is_poor_below_three_quarters_and_only_in_a_part_of_the_shards(
    seen: float, window: int, is_poor: bool
) -> None:
    assert Mixing(seen, 4.0, window, 4).is_poor == is_poor
    assert str(Mixing(seen, 4.0, 3, 4)).startswith("a shuffle window of 3 shards sees ")


@pytest.mark.parametrize(
    ("num", "count", "numbers"),
    [(5, 9, [0, 1, 2, 3, 4]), (10, 4, [0, 3, 6, 9]), (7, 1, [0]), (1, 3, [0]), (100, 3, [0, 49, 99])],
)
def test_some_numbers_are_spread_from_the_first_to_the_last(num: int, count: int, numbers: list[int]) -> None:
    assert evenly(num, count).tolist() == numbers


def test_some_batches_of_an_epoch_are_those_of_training() -> None:
    order = EpochOrder([8] * 5, 2, seed=3, epoch=1)
    batches = some_batches(order, 4, count=3)
    assert [batch.tolist() for batch in batches] == [global_batch(order, 4, step).tolist() for step in (0, 4, 9)]


def test_classes_are_counted_by_position_and_not_by_order() -> None:
    """Shards of one class each, of unequal lengths, read one after the other."""
    sizes = [4, 12, 8]
    order = EpochOrder(sizes, 1, seed=5, epoch=1)
    assert order.shards.tolist() != [0, 1, 2]
    found = measure_mixing(order, np.repeat([7, 2, 5], sizes), 4, 1)
    assert (found.seen, found.window_shards, found.num_shards) == (1.0, 1, 3)


@pytest.mark.parametrize(
    ("keys", "classes"),
    [
        (["b_2", "a_1", "b_1", "a_9"], [1, 0, 1, 0]),
        (["a_1", "a_2", "b_1"], None),  # fewer than two samples a class
        (["a_1", "a_2", "b_1", "b_x"], None),
        (["a-1", "a-2", "b-1", "b-2"], None),
        ([], None),
    ],
)
def test_the_class_of_a_key_stands_before_its_number(keys: list[str], classes: list[int] | None) -> None:
    found = classes_of_keys(keys)
    assert (None if found is None else found.tolist()) == classes
