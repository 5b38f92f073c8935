"""How many cells a sentence names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.reporting.statistics.wording import _names


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "a"), (4, "a, b, c, d"), (5, "a, b, c, d, e"), (6, "a, b, c, d and 2 others")],  # "1 others" is never said
)
def test_cells_beyond_the_named_ones_are_several(count: int, words: str) -> None:
    groups: list[Any] = [SimpleNamespace(label=label) for label in "abcdef"[:count]]
    assert _names(groups) == words
