"""How the cost of a sweep is put into a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.cost.table import _range, label_of
from jobs.runs.trial import Trial


@pytest.mark.parametrize(
    ("axes", "label"),
    [
        ({"model.arch": "unet", "augment.policy": "elastic", "train.seed": 3}, "unet elastic"),
        ({"model.arch": "unet"}, "unet"),
        ({"train.seed": 3}, "all trials"),
        ({}, "all trials"),
    ],
)
def test_a_cell_is_called_by_its_values_but_the_seed(axes: dict[str, Any], label: str) -> None:
    assert label_of(Trial("0123456789", axes, Path("none"))) == label


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [([3.0, 3.0], "3"), ([10.0, 3.0], "3-10"), ([2.54, 2.56], "2.5-2.6"), ([3.0, None], "?")],
)
def test_the_epochs_of_a_cell_are_a_number_or_a_range(epochs: list[float | None], shown: str) -> None:
    assert _range(epochs) == shown
