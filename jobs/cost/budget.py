"""The most that a sweep may cost (--budget), and the check of its estimate against it."""

from __future__ import annotations

import re

from jobs.cost.estimate import CORE_HOURS, GPU_HOURS, Estimate

BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(gpu|cpu)h\s*", re.IGNORECASE)


def parse_budget(text: str) -> tuple[float, str]:
    """`20gpuh` -> (20.0, GPU_HOURS); raises ValueError that shows the form."""
    match = BUDGET.fullmatch(text)
    if not match:
        raise ValueError(f"--budget {text!r}: write hours and their unit, such as 20gpuh, 2.5gpuh or 8cpuh")
    return float(match[1]), GPU_HOURS if match[2].lower() == "gpu" else CORE_HOURS


def check_budget(estimate: Estimate, text: str) -> None:
    """Raises ValueError with the next step if the estimate exceeds the budget or is unknown."""
    allowed, unit = parse_budget(text)
    if not estimate.trials:
        return
    if unit == GPU_HOURS and not estimate.gpus:
        raise ValueError(f"--budget {text}: these jobs ask for no GPU, so give core hours, such as 8cpuh")
    needed = estimate.hours(unit)
    if needed is None:
        unknown = [cost for cost in estimate.trials if cost.seconds is None]
        raise ValueError(
            f"--budget {text}: what {len(unknown)} of {len(estimate.trials)} trials take is not known "
            f"({unknown[0].source}): run one of each kind first, probe on a node like theirs, or leave --budget out"
        )
    if needed > allowed:
        fit = int(allowed / needed * len(estimate.trials))
        dearest = f"; {estimate.axes[0].name} costs most" if estimate.axes and estimate.axes[0].spread > 1.05 else ""
        raise ValueError(
            f"the estimate of {needed:.3g} {unit} for {len(estimate.trials)} trials goes over the budget of "
            f"{allowed:g}: about {fit} of them would fit{dearest}: take fewer values of an axis (--axis), shorter "
            "trials (--set train.epochs=N or train.budget_steps=N), or raise --budget"
        )
