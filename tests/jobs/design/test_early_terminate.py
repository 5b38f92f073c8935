"""`early_terminate` of a sweep file; its complaints are tested with the file's others, in test_spec.py."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from jobs.design.early_terminate import hyperband_entry, parse_hyperband
from petseg.training.pruning import Hyperband


@given(st.integers(1, 50), st.floats(1.1, 9), st.booleans())
def test_a_rule_survives_the_file(first: int, eta: float, strict: bool) -> None:
    rule = Hyperband(min_iter=first, eta=eta, strict=strict)
    assert parse_hyperband(json.loads(json.dumps(hyperband_entry(rule)))) == rule


def test_a_rule_without_a_first_rung_survives_too() -> None:
    rule = Hyperband(max_iter=27, eta=2, s=2)
    assert hyperband_entry(rule) == {"type": "hyperband", "max_iter": 27, "eta": 2, "s": 2}
    assert parse_hyperband(hyperband_entry(rule)) == rule


def test_an_entry_says_no_more_than_the_file_did() -> None:
    assert hyperband_entry(Hyperband(4)) == {"type": "hyperband", "min_iter": 4}
    full = {"type": "hyperband", "max_iter": 81, "s": 2, "eta": 4.0, "strict": True}
    assert hyperband_entry(parse_hyperband(full)) == full
