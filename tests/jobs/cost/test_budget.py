"""Budgets as they are read and held, and the table of the estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from jobs.cost.budget import check_budget, parse_budget
from jobs.cost.estimate import CORE_HOURS, GPU_HOURS, AxisCost, Estimate, TrialCost
from jobs.cost.table import render
from jobs.runs.trial import Trial


@pytest.mark.parametrize(
    ("text", "budget"),
    [("20gpuh", (20.0, GPU_HOURS)), ("8cpuh", (8.0, CORE_HOURS)), (" 2.5 GPUh", (2.5, GPU_HOURS))],
)
def test_budgets_are_read(text: str, budget: tuple[float, str]) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["20", "gpuh", "-1gpuh", "20 h", "nan gpuh", "1e3gpuh", ""])
def test_an_invalid_budget_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 20gpuh, 2\.5gpuh or 8cpuh"):
        parse_budget(text)


def of(seconds: list[float], gpus: int) -> Estimate:
    costs = tuple(
        TrialCost(Trial(f"{n:010d}", {"model.arch": "unet"}, Path("none")), s, 10, None, None, "records of 1 trial")
        for n, s in enumerate(seconds)
    )
    axes = (AxisCost("model.arch", {"unet": 60.0, "resnet34_unet": 90.0}),)
    return Estimate(costs, gpus=gpus, cores=8, end_s=sum(seconds), max_parallel=1, axes=axes, notes=())


def test_the_budget_is_checked_in_either_unit() -> None:
    check_budget(of([1800, 1800], gpus=2), "2gpuh")
    check_budget(of([1800, 1800], gpus=2), "8cpuh")
    with pytest.raises(ValueError, match=r"estimate of 2 GPU hours for 2 trials goes over the budget of 1\.5: about 1"):
        check_budget(of([1800, 1800], gpus=2), "1.5gpuh")
    with pytest.raises(ValueError, match="ask for no GPU, so give core hours"):
        check_budget(of([1800], gpus=0), "1gpuh")
    check_budget(of([], gpus=0), "1gpuh")


def test_each_cell_has_a_line_and_each_note_appears_once() -> None:
    """Fifty trials of 25 cells on two seeds, in 80 columns."""
    found = of([60.0] * 50, gpus=1)
    axes = [{"model.width": n // 2, "augment.policy": "elastic_crop", "train.seed": n % 2} for n in range(50)]
    costs = [replace(cost, trial=replace(cost.trial, axes=axes[n])) for n, cost in enumerate(found.trials)]
    costs[0] = replace(costs[0], epochs=3)
    costs[49] = replace(costs[49], seconds=None, source="the probe failed")
    console = Console(width=80, soft_wrap=True)
    with console.capture() as capture:
        console.print(render(replace(found, trials=tuple(costs), notes=("a note " * 20,)), most=20))
    lines = capture.get().splitlines()
    assert lines[0] == "50 trials to run: an unknown number of GPU hours, 50 min with 1 at a time"
    assert max(map(len, lines)) <= 80
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert len(rows) == 20
    assert rows[0] == ["width=0 elastic_crop", "2", "3-10", "60 s", "0.0333"]
    text = " ".join(capture.get().split())
    assert "and 5 more cells" in text
    assert text.count("known by records of 1 trial") == 1
    assert "- 1 trials: not known: the probe failed" in text
    assert text.count("- a note") == 1
    assert "model.arch: unet 60 s, resnet34_unet 2 min a trial in the mean, 1.5 times between them" in text


def test_a_sweep_on_seeds_alone_is_one_cell() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(replace(of([60.0, 100.0], gpus=1), axes=(AxisCost("train.seed", {"0": 60, "1": 100}),))))
    assert "│ unet │      2 │     10 │      80 s │    0.0444 │" in capture.get()
    assert "train.seed" not in capture.get()


def test_a_cell_with_an_unknown_trial_has_no_sum() -> None:
    found = of([60.0, 100.0], gpus=1)
    one, other = found.trials
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(replace(found, trials=(one, replace(other, seconds=None, source="the probe failed")))))
    assert "│ unet │      2 │     10 │         ? │         ? │" in capture.get()
