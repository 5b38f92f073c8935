"""The curves as charts: where each line, band, mark and tick stands, for curves.html.j2 to draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from jobs.reporting.sections.curves import METRICS, SPLITS, Curve, Line, Panel

NUM_COLOURS = 6  # --curve-0 to --curve-5 of the style sheet
WIDTH, HEIGHT, TOP, RIGHT, BOTTOM = 374.0, 216.0, 7.0, 366.0, 177.0
LABEL_PX, DIGIT_PX = 9.0, 6.0  # between the y labels and the frame's ends, and the width of a digit
STEPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)  # between ticks, times a power of ten
ROUNDING = 1e-9
MAX_TICKS = {"x": 8, "y": 6}
DOT, SQUARE, TRIANGLE, ARROW = 3.5, 3.5, 5.5, 4.0  # from the middle of a mark to its edge

Ticks = tuple[tuple[float, str], ...]
Span = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """An SVG path. kind: its class in the style sheet (band, train, val, best, lowest, alone, above)."""

    kind: str
    colour: int
    path: str


@dataclass(frozen=True)
class Outside:
    """A line that leaves its frame."""

    name: str
    highest: float
    epoch: int


@dataclass(frozen=True)
class Frame:
    """The epochs and values that a chart shows, and where they stand in the drawing."""

    left: float
    epochs: Span
    values: Span

    def x(self, epoch: float) -> float:
        first, last = self.epochs
        return self.left + (RIGHT - self.left) * (epoch - first) / (last - first)

    def y(self, value: float) -> float:
        low, high = self.values
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    def points(self, epochs: Sequence[float], values: Sequence[float]) -> str:
        """The line through these points, in the notation of an SVG path."""
        return "M" + "L".join(f"{self.x(e):.1f},{self.y(v):.1f}" for e, v in zip(epochs, values, strict=True))


@dataclass(frozen=True)
class Chart:
    """One metric of a panel."""

    name: str
    frame: Frame
    x_ticks: Ticks
    y_ticks: Ticks
    lines: tuple[Shape, ...]  # end at the frame
    marks: tuple[Shape, ...]
    outside: tuple[Outside, ...]


@dataclass(frozen=True)
class PanelCharts:
    """A panel and its charts, loss and Dice."""

    panel: Panel
    charts: tuple[Chart, ...]


def draw_charts(panels: Sequence[Panel]) -> list[PanelCharts]:
    """The charts of all panels, those of one metric on one scale."""
    curves = [curve for panel in panels for curve in panel.curves]
    limits = {metric: value_limits(curves, metric) for metric in METRICS}
    return [PanelCharts(panel, tuple(_chart(panel, metric, limits[metric]) for metric in METRICS)) for panel in panels]


def value_limits(curves: Sequence[Curve], metric: str) -> Span:
    """Room for all lines, except that the first steps of a loss may leave the frame rather than flatten the rest."""
    lines = [line for curve in curves for name, line in curve.lines.items() if name.endswith(metric)]
    lows = [value for line in lines for value in line.low]
    highs = sorted(value for line in lines for value in line.high)
    if not highs:
        return 0.0, 1.0
    low, high = min(lows), min(highs[-1], 1.5 * highs[int(0.97 * (len(highs) - 1))])
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _chart(panel: Panel, metric: str, limits: Span) -> Chart:
    epochs = [epoch for curve in panel.curves for line in curve.lines.values() for epoch in line.epochs]
    first, last = min(epochs), max(epochs)
    room = max(0.02 * (last - first), 0.5 if first == last else 0.06)
    y_ticks = find_ticks(limits, MAX_TICKS["y"])
    left = LABEL_PX + DIGIT_PX * max(len(text) for _, text in y_ticks)
    frame = Frame(left, (first - room, last + room), limits)
    return Chart(
        name=METRICS[metric],
        frame=frame,
        x_ticks=tuple((frame.x(e), text) for e, text in find_ticks(frame.epochs, MAX_TICKS["x"], whole=True)),
        y_ticks=tuple((frame.y(value), text) for value, text in y_ticks),
        lines=tuple(shape for curve in panel.curves for shape in _lines(frame, curve, metric)),
        marks=tuple(shape for curve in panel.curves for shape in _marks(frame, curve, metric)),
        outside=lines_outside(panel, metric, limits[1]),
    )


def find_ticks(span: Span, most: int, whole: bool = False) -> Ticks:
    """Round values within the span, at most `most` + 1 of them, and their labels; whole: only whole numbers."""
    low, high = span
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    steps = (step * power * scale for scale in (1, 10, 100) for step in STEPS)
    step = next(
        s for s in steps if s >= least * (1 - ROUNDING) and (not whole or (s >= 1 and math.isclose(s, round(s))))
    )
    digits = max(0, -int(Decimal(f"{step:.6g}").as_tuple().exponent))
    numbers = range(math.ceil(low / step - ROUNDING), math.floor(high / step + ROUNDING) + 1)
    return tuple((number * step, f"{number * step:z.{digits}f}") for number in numbers)


def _lines(frame: Frame, curve: Curve, metric: str) -> Iterator[Shape]:
    for split in SPLITS:
        if line := curve.lines.get(f"{split}/{metric}"):
            if curve.n > 1:
                band = frame.points((*line.epochs, *line.epochs[::-1]), (*line.low, *line.high[::-1]))
                yield Shape("band", curve.colour, f"{band}Z")
            yield Shape(split, curve.colour, frame.points(line.epochs, line.mean))


def _marks(frame: Frame, curve: Curve, metric: str) -> Iterator[Shape]:
    """Single epochs, the best val Dice, the lowest val loss, and arrows where a seed leaves the frame."""
    top = frame.values[1]
    for split in SPLITS:
        if line := curve.lines.get(f"{split}/{metric}"):
            if len(line.epochs) == 1:
                yield Shape(f"alone {split}", curve.colour, _single(frame, line, split))
            for epoch, high in zip(line.epochs, line.high, strict=True):
                if high > top:
                    yield Shape("above", curve.colour, _triangle(frame.x(epoch), TOP, ARROW, up=True))
    if val := curve.lines.get(f"val/{metric}"):
        at = {epoch: (frame.x(epoch), frame.y(mean)) for epoch, mean in zip(val.epochs, val.mean, strict=True)}
        if curve.best_dice_epoch in at:
            yield Shape("best", curve.colour, _circle(*at[curve.best_dice_epoch]))
        if curve.lowest_loss_epoch in at:
            yield Shape("lowest", curve.colour, _triangle(*at[curve.lowest_loss_epoch], TRIANGLE, up=False))


def _single(frame: Frame, line: Line, split: str) -> str:
    """The mark of a line of a single epoch, which has no length: a dash for train, a square for val."""
    x, y, side = frame.x(line.epochs[0]) - SQUARE, frame.y(line.mean[0]), 2 * SQUARE
    return (
        f"M{x:.1f},{y:.1f}h{side:g}" if split == "train" else f"M{x:.1f},{y - SQUARE:.1f}h{side:g}v{side:g}h{-side:g}Z"
    )


def _circle(x: float, y: float) -> str:
    return f"M{x - DOT:.1f},{y:.1f}a{DOT},{DOT} 0 1,0 {2 * DOT},0a{DOT},{DOT} 0 1,0 {-2 * DOT},0Z"


def _triangle(x: float, y: float, half: float, up: bool) -> str:
    base = half if up else -half
    return f"M{x - half:.1f},{y + base:.1f}h{2 * half:g}L{x:.1f},{y - base:.1f}Z"


def lines_outside(panel: Panel, metric: str, top: float) -> tuple[Outside, ...]:
    """The lines of a metric of which some seed rises above the frame."""
    outside = []
    for curve in panel.curves:
        for split in SPLITS:
            if (line := curve.lines.get(f"{split}/{metric}")) and max(line.high) > top:
                highest, epoch = max(zip(line.high, line.epochs, strict=True), key=lambda pair: pair[0])
                outside.append(Outside(f"{curve.label} {split}", highest, epoch))
    return tuple(outside)
