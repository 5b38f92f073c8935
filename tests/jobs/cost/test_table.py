"""How the cost of a sweep is put into a table."""

from __future__ import annotations

import pytest

from jobs.cost.table import _range


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [([3.0, 3.0], "3"), ([10.0, 3.0], "3-10"), ([2.54, 2.56], "2.5-2.6"), ([3.0, None], "?")],
)
def test_the_epochs_of_a_cell_are_a_number_or_a_range(epochs: list[float | None], shown: str) -> None:
    assert _range(epochs) == shown
