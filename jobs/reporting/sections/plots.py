"""Loss and Dice over the epochs, train against val, as inline SVG that takes its colours from the page."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.reporting.statistics.records import Group, Record, axis_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins in the SVG -> what the page's style sheet calls them, so that one drawing serves light and dark.
INK, FRAME, PAPER = "#010203", "#040506", "#070809"
CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, without yellow and black
VARIABLES = {INK: "--muted", FRAME: "--line", PAPER: "--paper"} | {c: f"--curve-{i}" for i, c in enumerate(CURVES)}
METRICS = {"loss": "loss", "dice": "Dice"}
MAX_PANELS = 24


@dataclass(frozen=True)
class Line:
    """One number over the epochs: mean, lowest and highest over the seeds that reached the epoch."""

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One group's lines by name (train/loss, val/loss, train/dice, val/dice)."""

    label: str
    colour: int
    n: int
    lines: dict[str, Line]
    best_dice_epoch: int | None  # of the mean over seeds
    lowest_loss_epoch: int | None


@dataclass(frozen=True)
class Outside:
    """A line that leaves its frame."""

    name: str
    highest: float
    epoch: int


@dataclass(frozen=True)
class Panel:
    """The curves that share a frame."""

    title: str
    curves: tuple[Curve, ...]
    svgs: tuple[str, ...] = ()  # loss, Dice
    outside: tuple[tuple[Outside, ...], ...] = ()  # of each of them


def collect(axes: Sequence[str], groups: Sequence[Group]) -> list[Panel]:
    """A panel per combination of all axes but the second (the only one, if there is one), whose values are colours."""
    colour_axis = next(iter([*axes[1:2], *axes]), "")
    colours = list(dict.fromkeys(group.axes[colour_axis] for group in groups)) if colour_axis else []
    panels: dict[str, list[Curve]] = {}
    for group in groups:
        others = [axis_text(name, value) for name, value in group.axes.items() if name != colour_axis]
        label = axis_text(colour_axis, group.axes[colour_axis]) if colour_axis else "all trials"
        colour = colours.index(group.axes[colour_axis]) if colour_axis else 0
        if curve := curve_of(group, label, colour):
            panels.setdefault(" · ".join(others), []).append(curve)
    return [Panel(title, tuple(curves)) for title, curves in panels.items()][:MAX_PANELS]


def curve_of(group: Group, label: str, colour: int) -> Curve | None:
    """Of the finished trials; of those under way only where none is finished."""
    records = group.done or tuple(record for record in group.records if record.rows)
    names = [f"{split}/{metric}" for metric in METRICS for split in ("train", "val")]
    lines = {name: line for name in names if (line := line_of(records, name))}
    if not lines:
        return None
    best, lowest = _epoch_of(lines, "val/dice", max), _epoch_of(lines, "val/loss", min)
    return Curve(label, colour, len(records), lines, best, lowest)


def line_of(records: Sequence[Record], name: str) -> Line | None:
    by_epoch: dict[int, list[float]] = {}
    for record in records:
        for row in record.rows:
            if math.isfinite(row.get(name, math.nan)):
                by_epoch.setdefault(int(row["epoch"]), []).append(float(row[name]))
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    return Line(
        tuple(epochs),
        tuple(statistics.fmean(v) for v in values),
        tuple(min(v) for v in values),
        tuple(max(v) for v in values),
    )


def _epoch_of(lines: dict[str, Line], name: str, choose: Callable[..., Any]) -> int | None:
    line = lines.get(name)
    return choose(zip(line.mean, line.epochs, strict=True), key=lambda pair: pair[0])[1] if line else None


def draw(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with their SVGs, all of a metric on the same scale. The same input gives the same bytes."""
    curves = [curve for panel in panels for curve in panel.curves]
    limits = {metric: _limits(curves, metric) for metric in METRICS}
    return [
        Panel(
            panel.title,
            panel.curves,
            tuple(_draw_svg(panel, metric, limits[metric], f"petseg-{number}-{metric}") for metric in METRICS),
            tuple(outside(panel, metric, limits[metric][1]) for metric in METRICS),
        )
        for number, panel in enumerate(panels)
    ]


def _limits(curves: Sequence[Curve], metric: str) -> tuple[float, float]:
    """Room for all lines, except that the first steps of a loss may leave the frame rather than flatten the rest."""
    lines = [line for curve in curves for name, line in curve.lines.items() if name.endswith(metric)]
    lows = [value for line in lines for value in line.low]
    highs = sorted(value for line in lines for value in line.high)
    if not highs:
        return 0.0, 1.0
    low, high = min(lows), min(highs[-1], 1.5 * highs[int(0.97 * (len(highs) - 1))])
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def outside(panel: Panel, metric: str, top: float) -> tuple[Outside, ...]:
    """The lines of a metric of which some seed rises above the frame."""
    found = []
    for curve in panel.curves:
        for split in ("train", "val"):
            if (line := curve.lines.get(f"{split}/{metric}")) and max(line.high) > top:
                highest, epoch = max(zip(line.high, line.epochs, strict=True), key=lambda pair: pair[0])
                found.append(Outside(f"{curve.label} {split}", highest, epoch))
    return tuple(found)


def _draw_svg(panel: Panel, metric: str, limits: tuple[float, float], salt: str) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9.5, "axes.linewidth": 0.8}
    style |= {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for curve in panel.curves:
            _draw_curve(axes, curve, metric, limits[1])
        axes.set_xlabel("epoch")
        axes.set_ylim(*limits)
        epochs = [epoch for curve in panel.curves for line in curve.lines.values() for epoch in line.epochs]
        first, last = min(epochs), max(epochs)
        room = max(0.02 * (last - first), 0.5 if first == last else 0.06)
        axes.set_xlim(first - room, last + room)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.grid(visible=True, color=FRAME, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=5)
        axes.spines[:].set_color(FRAME)
        axes.spines[["top", "right"]].set_visible(False)
        content = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    return inline(content.getvalue())


def _draw_curve(axes: Axes, curve: Curve, metric: str, top: float) -> None:
    colour = CURVES[curve.colour % len(CURVES)]
    for split, dashes, width in (("train", (0, (3, 2)), 1.2), ("val", "solid", 1.8)):
        line = curve.lines.get(f"{split}/{metric}")
        if not line:
            continue
        if curve.n > 1:
            axes.fill_between(line.epochs, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
        alone: dict[str, Any] = (
            {"marker": "_" if split == "train" else "s", "markersize": 7} if len(line.epochs) == 1 else {}
        )
        axes.plot(line.epochs, line.mean, color=colour, linestyle=dashes, linewidth=width, **alone)
        if above := [epoch for epoch, high in zip(line.epochs, line.high, strict=True) if high > top]:
            axes.plot(above, [top] * len(above), "^", color=colour, mec=PAPER, ms=8, zorder=5, clip_on=False)
    if val := curve.lines.get(f"val/{metric}"):
        at = dict(zip(val.epochs, val.mean, strict=True))
        if curve.best_dice_epoch in at:
            axes.plot(
                [curve.best_dice_epoch], [at[curve.best_dice_epoch]], "o", color=colour, mec=PAPER, ms=7, zorder=4
            )
        if curve.lowest_loss_epoch in at:
            lowest = [curve.lowest_loss_epoch], [at[curve.lowest_loss_epoch]]
            axes.plot(*lowest, "v", color=colour, mfc="none", ms=11, mew=1.3, zorder=4)


def inline(svg: str) -> str:
    """A matplotlib SVG as an element of the page: no prolog, no size of its own, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|FillBetween\w*|PolyCollection\w*)[\w.]*"',
        "",
        svg,
    )
    svg = re.sub(r"font: [\d.]+px [^;\"]*", lambda found: re.sub(r"px .*", "px sans-serif", found[0]), svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg).replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
