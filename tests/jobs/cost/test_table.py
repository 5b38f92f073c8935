"""How the cost of a sweep is put into a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.cost.estimate import AxisCost, Estimate, TrialCost
from jobs.cost.table import _notes, _range, _title, render
from jobs.runs.trial import Trial


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [([3.0, 3.0], "3"), ([10.0, 3.0], "3-10"), ([2.54, 2.56], "2.5-2.6"), ([3.0, None], "?")],
)
def test_the_epochs_of_a_cell_are_a_number_or_a_range(epochs: list[float | None], shown: str) -> None:
    assert _range(epochs) == shown


def cost(cell: str, seconds: float | None = 60.0, source: str = "records") -> TrialCost:
    return TrialCost(Trial("0" * 10, {"model.arch": cell}, Path("none")), seconds, 3.0, None, None, source)


def estimate(*costs: TrialCost, **more: Any) -> Estimate:
    values = {"gpus": 2, "cores": 8.0, "end_s": None, "max_parallel": 3, "axes": (), "notes": ()} | more
    return Estimate(costs, **values)


def test_what_is_known_of_many_cells_is_cut_to_a_screenful() -> None:
    many = [cost(f"arch{number}", source=f"source {number}") for number in range(4)]
    title, table, rest, notes = render(estimate(*many), most=3).renderables  # type: ignore[union-attr]
    assert str(title) == "4 trials to run: about 0.133 GPU hours"
    assert (table.row_count, str(rest)) == (3, "and 1 more cells")
    assert [str(column.header) for column in table.columns] == ["cell", "trials", "epochs", "time each", "GPU hours"]
    assert [column.justify for column in table.columns] == ["left", *["right"] * 4]
    assert [[str(cell) for cell in column.cells] for column in table.columns][3:] == [["60 s"] * 3, ["0.0333"] * 3]
    assert [str(cell) for cell in notes.columns[1].cells] == [
        *(f"1 trials: known by source {number}" for number in range(3)), "and 1 more sources",
    ]  # fmt: skip
    assert len(render(estimate(*many), most=4).renderables) == 3  # type: ignore[union-attr]


def notes_of(found: Estimate, most: int = 40) -> list[str]:
    return list(_notes(found, most))


def test_each_source_is_counted_and_memory_and_axes_follow() -> None:
    known, unknown = cost("a"), cost("b", None, "no probe was made")
    assert notes_of(estimate(known, known)) == ["known by records"]
    axes = (
        AxisCost("model.width", {"8": 60.0, "16": 120.0, "32": 240.0}),
        AxisCost("train.seed", {"0": 1.0, "1": 9.0}),
    )
    found = estimate(
        known, replace(known, host_memory_gib=2.345, gpu_memory_gib=3.0), unknown, axes=axes, notes=("a", "b")
    )
    assert notes_of(found, 2) == [
        "2 trials: known by records", "1 trials: not known: no probe was made", "memory of a node: at most 2.35 GiB",
        "memory of a GPU: at most 3.00 GiB",
        "model.width: 8 60 s, 16 2 min and 1 more values a trial in the mean, 4 times between them",
        "a", "b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "title"),
    [
        ({}, "1 trials to run: about 0.0333 GPU hours"),
        ({"end_s": 600.0}, "1 trials to run: about 0.0333 GPU hours, 10 min with 3 at a time"),
        ({"gpus": 0, "end_s": 600.0}, "1 trials to run: about 0.133 CPU core hours, 10 min with 3 at a time"),
    ],
)
def test_the_title_has_the_hours_and_the_end(more: dict[str, Any], title: str) -> None:
    assert _title(estimate(cost("a"), **more)) == title
