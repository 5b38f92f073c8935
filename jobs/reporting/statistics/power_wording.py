"""The power of a sweep in words, for finished trials and for planned ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from jobs.design.expansion import Cell
from jobs.reporting.statistics.power import LADDER, POWER, Noise, least_difference, seeds_for
from jobs.reporting.statistics.records import NOISE_DICE, read_record
from jobs.reporting.statistics.verdict import Comparison, build_leaderboard
from jobs.runs.trial import SEED_AXIS, Sweep
from jobs.state.trial_status import trial_status

LEAST_GAP = 0.0005  # a smaller one is nobody's aim
# standard deviations on published photos, if no trial has finished: of runs, from three seeds each of unet (0.0016) and
# resnet34_unet (0.0032) in LOG.md, 2026-11-24; of pictures in a cell, an assumption
REFERENCE_RUN, REFERENCE_PICTURE = 0.0025, 0.02


def power_points(val: Comparison) -> list[str]:
    """A sentence on the differences that such a sweep can show; [] if the spreads of its trials are unknown."""
    noise, several = val.noise, ~val.cells.is_single
    if noise is None or not noise.run + noise.picture:
        return []
    count, seeds = int(several.sum()), int(np.median(val.cells.seeds[several]))
    gap = val.difference(0, 1)
    wanted = [("", NOISE_DICE)]
    if gap.finding in ("open", "same") and abs(gap.value) >= LEAST_GAP:
        wanted.append((", the gap between the first two,", abs(gap.value)))
    needed = [f"{size:.4f}{name} {_needed(seeds_for(size, count, noise))}" for name, size in wanted]
    shown = f"{shown_text(count, seeds, noise)} (by the spreads of these trials: {spreads_text(noise)})"
    return [f"{shown}. {'; '.join(needed)}."]


def plan_text(sweep: Sweep, cells: Mapping[str, Cell], num_pictures: int) -> str:
    """The differences that a planned sweep can show. cells: by trial id."""
    seeds = Counter(tuple(v for name, v in cell.axes.items() if name != SEED_AXIS) for cell in cells.values())
    done = [trial for trial in sweep.trials if trial.result()]
    board = build_leaderboard(sweep, [read_record(trial_status(trial, None, {}), epochs=False) for trial in done])
    return planned_text(len(seeds), min(seeds.values()), num_pictures, board.val)


def planned_text(num_cells: int, seeds: int, num_pictures: int, known: Comparison | None) -> str:
    """The differences that cells and seeds can show on val pictures. known: finished trials of the sweep."""
    if num_cells < 2:
        return "One cell alone is compared with nothing."
    if seeds < 2:
        return (
            "With one seed no difference can be shown: how far another seed would move a cell is not known. "
            "Two seeds are the least, three are better."
        )
    noise = known.noise if known else None
    source = "by the spreads of finished trials of this sweep"
    if noise is None:
        noise = Noise(REFERENCE_RUN, REFERENCE_PICTURE, max(2, num_pictures))
        source = "by a reference on published photos, as no two cells of this sweep have two finished seeds"
    return f"{shown_text(num_cells, seeds, noise)} ({source}: {spreads_text(noise)})."


def shown_text(num_cells: int, seeds: int, noise: Noise) -> str:
    """`With 3 seeds and 368 val pictures a difference of about 0.012 Dice between ...`"""
    size = least_difference(num_cells, seeds, noise)
    cells = "the two cells" if num_cells == 2 else f"two of the {num_cells} cells"
    return (
        f"With {seeds} seeds and {noise.num_pictures:,} val {noise.unit} a difference of about {size:.2g} Dice between "
        f"{cells} is shown in {POWER * 100:.0f} % of sweeps"
    )


def spreads_text(noise: Noise) -> str:
    return f"standard deviation of runs {noise.run:.4f}, of {noise.unit} in a cell {noise.picture:.3f}"


def _needed(seeds: int | None) -> str:
    if seeds is None:
        return f"would not be shown so often with {LADDER[-1]} seeds: that takes more val pictures"
    return f"would take about {seeds} seeds"
