"""Budgets as they are read and held, and the table of the estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from jobs.cost import CORE_HOURS, GPU_HOURS, AxisCost, Estimate, TrialCost
from jobs.cost_budget import check_budget, parse_budget
from jobs.cost_table import render
from jobs.trial import Trial


@pytest.mark.parametrize(
    ("text", "budget"),
    [("20gpuh", (20.0, GPU_HOURS)), ("8cpuh", (8.0, CORE_HOURS)), (" 2.5 GPUh", (2.5, GPU_HOURS))],
)
def test_budgets_are_read(text: str, budget: tuple[float, str]) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["20", "gpuh", "-1gpuh", "20 h", "nan gpuh", "1e3gpuh", ""])
def test_what_is_no_budget_is_told_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 20gpuh, 2\.5gpuh or 8cpuh"):
        parse_budget(text)


def of(seconds: list[float], gpus: int) -> Estimate:
    costs = tuple(
        TrialCost(Trial(f"{n:010d}", {"model.arch": "unet"}, Path("none")), s, 10, None, None, "records of 1 trial")
        for n, s in enumerate(seconds)
    )
    axes = (AxisCost("model.arch", {"unet": 60.0, "resnet34_unet": 90.0}),)
    return Estimate(costs, gpus=gpus, cores=8, end_s=sum(seconds), max_parallel=1, axes=axes, notes=())


def test_the_budget_is_held_in_either_unit() -> None:
    check_budget(of([1800, 1800], gpus=2), "2gpuh")
    check_budget(of([1800, 1800], gpus=2), "8cpuh")
    with pytest.raises(ValueError, match=r"estimate of 2 GPU hours for 2 trials goes over the budget of 1\.5: about 1"):
        check_budget(of([1800, 1800], gpus=2), "1.5gpuh")
    with pytest.raises(ValueError, match="ask for no GPU, so give core hours"):
        check_budget(of([1800], gpus=0), "1gpuh")
    check_budget(of([], gpus=0), "1gpuh")


def test_many_trials_are_cut_short_and_the_axes_are_told() -> None:
    console = Console(width=240)
    with console.capture() as capture:
        console.print(render(of([60.0] * 50, gpus=1)))
    assert "50 trials to run: about 0.833 GPU hours, 50 min after the first start with 1 at a time" in capture.get()
    assert "and 10 more trials" in capture.get()
    assert "model.arch: unet 60 s, resnet34_unet 2 min a trial in the mean, 1.5 times between them" in capture.get()
