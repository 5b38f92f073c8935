"""Dice against size, speed and memory: models that petseg.compress measured, from the files in the folder points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.reporting.sections.charts import DIGIT_PX, LABEL_PX, MAX_TICKS, RIGHT, Frame, Span, Ticks, find_ticks
from petseg.inference.point_files import Point, Setting, read_points

POINTS_NAME = "points"  # the folder
MAX_FILES, MAX_SETTINGS, MAX_DRAWN = 50, 6, 40
COSTS = (("file_mb", "size", "MB"), ("latency_ms", "latency", "ms a picture"), ("peak_memory_mb", "peak memory", "MB"))
LEAST_COST = 1e-3  # the least end of a scale, which begins at 0
NEAR_PX = 20.0  # a mark this near, on the right, takes the room of a number
DIGITS = 4  # of Dice: less is no reason to pay more


@dataclass(frozen=True)
class Model:
    """A row of the table. number: of its marks in the charts."""

    number: int
    file: str
    point: Point
    fronts: tuple[str, ...]  # the costs for which no other model is as good on both sides


@dataclass(frozen=True)
class Mark:
    """A model in a chart, in the drawing's pixels."""

    number: int
    x: float
    y: float
    ends: tuple[float, float] | None  # of the interval: top and bottom
    is_front: bool
    is_left: bool  # whether its number stands on its left, as another mark is on its right
    words: str


@dataclass(frozen=True)
class CostChart:
    """Dice against one cost."""

    name: str
    unit: str
    frame: Frame
    x_ticks: Ticks
    y_ticks: Ticks
    front: str  # an SVG path
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Compared:
    """The models of one setting."""

    setting: Setting
    models: tuple[Model, ...]
    charts: tuple[CostChart, ...]
    more: int  # models beyond MAX_DRAWN
    num_files: int


@dataclass(frozen=True)
class Pareto:
    """The content of the section."""

    settings: tuple[Compared, ...]
    more_settings: int
    refused: tuple[str, ...]  # files that cannot be read, and why


def compare_models(folder: Path) -> Pareto | None:
    """The models measured for a sweep, settings with the most models first; None if its folder has no such file."""
    paths, refused = _files(folder / POINTS_NAME)
    found: dict[Setting, list[tuple[str, Point]]] = {}
    for path in paths[:MAX_FILES]:
        try:
            points = read_points(path)
        except (OSError, ValueError) as error:
            refused.append(_without(folder, error))
            continue
        found.setdefault(points.setting, []).extend((path.name, point) for point in points.points)
    if len(paths) > MAX_FILES:
        refused.append(f"{len(paths) - MAX_FILES} files after the first {MAX_FILES} were not read.")
    if not found and not refused:
        return None
    settings = sorted(found, key=lambda one: -len(found[one]))
    compared = tuple(_compare(one, found[one]) for one in settings[:MAX_SETTINGS])
    return Pareto(compared, max(0, len(settings) - MAX_SETTINGS), tuple(refused))


def on_front(points: Sequence[Point], cost: str) -> list[bool]:
    """Whether each point is on the front: no other has at most its cost and at least its Dice, and is better in one."""
    pairs = [(cost_of(point, cost), round(point.dice, DIGITS)) for point in points]
    return [
        not any(other <= own and d >= dice and (other, d) != (own, dice) for other, d in pairs) for own, dice in pairs
    ]


def cost_of(point: Point, cost: str) -> float:
    return point.speed.latency_ms if cost == "latency_ms" else float(getattr(point, cost))


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """The JSON files of the folder, by name, and what is wrong with the folder."""
    if folder.is_symlink():
        return [], [f"{POINTS_NAME} is a symbolic link, which is not followed."]
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json"), []
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        return [], [f"{POINTS_NAME} cannot be read ({error.strerror})."]


def _without(folder: Path, error: Exception) -> str:
    """The error's words, in which files are named from the sweep's folder on."""
    return str(error).replace(f"{folder}/", "")


def _compare(setting: Setting, found: Sequence[tuple[str, Point]]) -> Compared:
    drawn = found[:MAX_DRAWN]
    points = [point for _, point in drawn]
    fronts = {name: on_front(points, cost) for cost, name, _ in COSTS}
    models = tuple(
        Model(i + 1, file, point, tuple(name for name, flags in fronts.items() if flags[i]))
        for i, (file, point) in enumerate(drawn)
    )
    charts = tuple(_chart(models, cost) for cost in COSTS)
    return Compared(setting, models, charts, len(found) - len(drawn), len({file for file, _ in found}))


def _chart(models: Sequence[Model], cost: tuple[str, str, str]) -> CostChart:
    key, name, unit = cost
    limits = _dice_limits([model.point for model in models])
    highest = max(LEAST_COST, *(cost_of(model.point, key) for model in models))
    y_ticks = find_ticks(limits, MAX_TICKS["y"])
    left = LABEL_PX + DIGIT_PX * max(len(text) for _, text in y_ticks)
    frame = Frame(left, (0.0, 1.06 * highest), limits)
    marks = _beside([_mark(model, cost, frame) for model in models])
    return CostChart(
        name=name,
        unit=unit,
        frame=frame,
        x_ticks=tuple((frame.x(value), text) for value, text in find_ticks(frame.epochs, MAX_TICKS["x"] - 2)),
        y_ticks=tuple((frame.y(value), text) for value, text in y_ticks),
        front=_steps([mark for mark in marks if mark.is_front]),
        marks=marks,
    )


def _dice_limits(points: Sequence[Point]) -> Span:
    values = [value for point in points for value in (point.dice, *(point.dice_interval_95 or ()))]
    margin = max(0.06 * (max(values) - min(values)), 0.002)
    return min(values) - margin, max(values) + margin


def _mark(model: Model, cost: tuple[str, str, str], frame: Frame) -> Mark:
    key, name, unit = cost
    point, value = model.point, cost_of(model.point, key)
    ends = point.dice_interval_95
    return Mark(
        number=model.number,
        x=frame.x(value),
        y=frame.y(point.dice),
        ends=(frame.y(ends[1]), frame.y(ends[0])) if ends else None,
        is_front=name in model.fronts,
        is_left=False,
        words=f"{point.name}: Dice {point.dice:.4f}, {value:.4g} {unit}",
    )


def _beside(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """The marks, with the numbers of those on the left that have another one near on their right."""
    crowded = [
        any(0 < other.x - one.x < NEAR_PX and abs(other.y - one.y) < NEAR_PX for other in marks) for one in marks
    ]
    return tuple(replace(one, is_left=left) for one, left in zip(marks, crowded, strict=True))


def _steps(front: Sequence[Mark]) -> str:
    """The highest Dice up to each cost: level until the next model of the front, then up."""
    ordered = sorted(front, key=lambda mark: mark.x)
    path = f"M{ordered[0].x:.1f},{ordered[0].y:.1f}"
    return path + "".join(f"H{mark.x:.1f}V{mark.y:.1f}" for mark in ordered[1:]) + f"H{RIGHT:g}"
