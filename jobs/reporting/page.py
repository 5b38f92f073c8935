"""The page: one HTML file that needs nothing beside itself."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.reporting.rows import INTERVALS_NOTE, MARGINAL, SIMULTANEOUS, metrics_of, p_cell
from jobs.reporting.sections.axes import weigh_axes
from jobs.reporting.sections.breakdown.by_group import build_by_group
from jobs.reporting.sections.breakdown.class_pictures import show_hardest
from jobs.reporting.sections.breakdown.classes import build_classes
from jobs.reporting.sections.calibration import calibrate_cells
from jobs.reporting.sections.charts import NUM_COLOURS, draw_charts
from jobs.reporting.sections.curves import collect
from jobs.reporting.sections.gallery import build_gallery
from jobs.reporting.sections.gap import measure_gaps
from jobs.reporting.sections.operation import operate
from jobs.reporting.sections.pareto import compare_models
from jobs.reporting.sections.pictures import lay_out
from jobs.reporting.sections.protocol import floor_of, floor_words, protocol, state_counts, warnings
from jobs.reporting.sections.targets import target_of
from jobs.reporting.sections.trials import trial_row
from jobs.reporting.statistics.records import NOISE_DICE, Grid, Group, Ranked, Record, Spread, rank, tabulate
from jobs.reporting.statistics.verdict import Difference, Leaderboard, build_leaderboard
from jobs.reporting.statistics.wording import FINDINGS, bounds, minus, ranks_text, verdict_of
from jobs.runs.trial import Sweep
from petseg.metrics.overlay import MISSED_RGB, PREDICTION_RGB, TRUTH_RGB, WRONG_RGB
from petseg.targets.target import Target
from shards.classes import Colour
from shards.terminal import duration

if TYPE_CHECKING:  # jinja2 is imported where it is used
    from jinja2 import Template

MIN_HEAT_SPAN = 0.02  # differences smaller than this stay pale, lest noise look like a finding
MAX_ROWS = 300  # of the leaderboard: a row takes 2 kB
MAX_DRAWN = 96  # groups with curves: more of them hide one another
MAX_PAIRED = 12  # cells whose pairs are all listed
MAX_HEAT = 60  # per cent of full colour: the numbers stay readable


@dataclass(frozen=True)
class Heatmap:
    """A table of one metric, with how deep each cell is coloured."""

    metric: str
    name: str
    split: str
    grids: list[Grid]
    low: float
    high: float
    best: float | None  # framed; test chooses nothing

    def depth(self, spread: Spread) -> int:
        """Per cent of full colour."""
        return round(MAX_HEAT * (spread.mean - self.low) / max(self.high - self.low, MIN_HEAT_SPAN))


def render_page(
    sweep: Sweep, records: Sequence[Record], board: Leaderboard | None = None, shards: str = "", live: str = ""
) -> str:
    """report.html of a sweep; the same folder gives the same bytes.

    shards: the folder of the shard set whose pictures are shown
    live: the version of a served page, which asks its server for newer ones
    """
    board = board or build_leaderboard(sweep, records)
    ranking = rank(board.groups)
    groups = [ranked.group for ranked in ranking]
    trials = [trial_row(record, sweep.hash_of(record.trial)) for record in records]
    return load_template().render(
        sweep=sweep,
        live=live,
        records=records,
        counts=state_counts(records),
        newest=newest(records),
        protocol=protocol(sweep, records, board.val),
        warnings=warnings(records, board.axes, list(sweep.axes)),
        axes=board.axes,
        board=board,
        verdict=verdict_of(board),
        findings=FINDINGS,
        noise=NOISE_DICE,
        intervals=INTERVALS_NOTE,
        marginal=MARGINAL,
        simultaneous=SIMULTANEOUS,
        bounds_text=bounds,
        heats=heats_of(board),
        by_group=build_by_group(board, sweep, shards),
        **pictures_section(ranking, sweep, shards),
        classes=build_classes(board),
        axes_section=weigh_axes(board.axes, board.groups, records),
        gaps=measure_gaps(groups),
        calibration=calibrate_cells(groups),
        pareto=compare_models(sweep.folder),
        operation=operate(sweep, groups, trials),
        trials=trials,
        **leaderboard_section(board, ranking, records),
        **curves_section(board, ranking),
    )


def load_template() -> Template:
    """page.html.j2, which includes the other templates beside this file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"quantity": quantity, "duration": duration, "signed": signed, "minus": minus, "p": p_cell}
    environment.filters |= {"ranks": ranks_text, "quoted": shlex.quote}
    return environment.get_template("page.html.j2")


def pictures_section(ranking: Sequence[Ranked], sweep: Sweep, shards: str) -> dict[str, Any]:
    """Pictures of the first cell, those of single classes, and what the colours in them mean."""
    gallery, sheet = build_gallery(ranking, sweep, shards), lay_out([ranked.group for ranked in ranking])
    cell = gallery.cell if gallery else None
    shown = cell.record if cell else sheet.rows[0].record if sheet.rows else None
    return {
        "gallery": gallery,
        "sheet": sheet,
        "colours": legend_of(target_of(shown)) if shown else (),
        "class_shots": show_hardest(cell, sweep, shards),
        "class_colours": colours_of("class"),
    }


def legend_of(target: Target) -> tuple[tuple[Colour, str], ...]:
    """The colours of pictures: right, missed and wrongly called pixels of two classes, else the classes themselves."""
    if target.is_binary:
        return colours_of(target.names[1])
    classes = tuple((one.colour, one.name) for one in target.classes)
    return (*classes, (WRONG_RGB, "wrong"), (TRUTH_RGB, "true outlines"))


def colours_of(wanted: str) -> tuple[tuple[Colour, str], ...]:
    named = ((PREDICTION_RGB, "right"), (MISSED_RGB, "missed"), (WRONG_RGB, "wrongly called"))
    return (*((colour, f"{words} {wanted}") for colour, words in named), (TRUTH_RGB, "true outline"))


def leaderboard_section(board: Leaderboard, ranking: Sequence[Ranked], records: Sequence[Record]) -> dict[str, Any]:
    """The first cells, and how they differ from each other."""
    return {
        "metrics": metrics_of(board),
        "pairs": paired(board),
        "max_paired": MAX_PAIRED,
        "ranking": ranking[:MAX_ROWS],
        "unlisted": max(0, len(ranking) - MAX_ROWS),
        "floor": floor_of(records, "val"),
        "every_pixel": floor_words(records).every_pixel,
        "strip": strip_scale(board.groups),
    }


def curves_section(board: Leaderboard, ranking: Sequence[Ranked]) -> dict[str, Any]:
    """Loss and Dice of the first cells over the epochs."""
    drawn = {ranked.group.key for ranked in ranking[:MAX_DRAWN]}
    panels = collect(board.axes, [group for group in board.groups if group.key in drawn])
    return {
        "panels": draw_charts(panels),
        "max_drawn": MAX_DRAWN,
        "undrawn": max(0, len(ranking) - MAX_DRAWN),
        "num_curves": NUM_COLOURS,
        "legend": {curve.label: curve.colour for panel in panels for curve in panel.curves},
    }


def heats_of(board: Leaderboard) -> list[Heatmap]:
    """The tables of mean Dice, on val and where it was measured on test."""
    grids = tabulate(board.axes, board.groups)
    return [heat for split in ("val", "test") if (heat := heat_of(split, grids, board.groups))]


def heat_of(split: str, grids: list[Grid], groups: Sequence[Group]) -> Heatmap | None:
    """The table of a split; None if no trial has measured it, except for val, which shows what is missing."""
    metric, name = f"{split}/dice", f"{split} Dice"
    means = [spread.mean for group in groups if (spread := group.spread(metric))]
    if not means:
        return Heatmap(metric, name, split, grids, 0.0, 1.0, None) if split == "val" else None
    return Heatmap(metric, name, split, grids, min(means), max(means), max(means) if split == "val" else None)


def paired(board: Leaderboard) -> list[Difference]:
    """All pairs of the best cells on val, the higher one first."""
    if board.val is None:
        return []
    count = min(len(board.val.groups), MAX_PAIRED)
    return [board.val.difference(i, j) for i in range(count) for j in range(i + 1, count)]


def strip_scale(groups: Sequence[Group]) -> tuple[float, float]:
    """Lowest val Dice of any seed, and the span to the highest."""
    spreads = [spread for group in groups if (spread := group.spread("val/dice"))]
    low = min((spread.low for spread in spreads), default=0.0)
    return low, max((spread.high for spread in spreads), default=1.0) - low or 1.0


def newest(records: Sequence[Record]) -> str:
    """When a trial last said something, in UTC; empty if none has begun."""
    times = [record.trial.state().time for record in records]
    when = max(times, default=0.0)
    return datetime.datetime.fromtimestamp(when, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC") if when else ""


def quantity(value: Any) -> str:
    """31037698 -> 31.0 M."""
    number = float(value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def signed(value: float) -> str:
    """The number with its sign, a true minus sign if negative."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
