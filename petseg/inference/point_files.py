"""What petseg.compress measures of models, as a JSON file that anybody may have written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from shards.files import build, read_json, write_whole

FORMAT_VERSION = 1
MAX_BYTES, MAX_POINTS, MAX_TEXT = 1 << 20, 100, 300
LARGEST = 1e12  # of every number: parameters of the largest networks have fewer

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Speed:
    """Medians of repeats in which the models take turns: pixels in memory to masks."""

    latency_ms: float  # of one picture
    images_per_s: float  # of batches of 8


@dataclass(frozen=True)
class Point:
    """One model."""

    name: str  # of its file
    dice: float
    dice_interval_95: list[float] | None  # over pictures
    difference_to_first: list[float] | None  # Dice minus that of the first model, and its interval over pictures
    file_mb: float
    parameters: int  # of the network before it was quantised
    speed: Speed
    peak_memory_mb: float  # of a process that predicts a batch, above one that has only imported the packages


@dataclass(frozen=True)
class Setting:
    """What was measured on what: points of different settings cannot be compared."""

    protocol: str
    split: str
    manifest_hash: str
    device: str
    threads: int


@dataclass(frozen=True)
class Points:
    """What was measured, and how."""

    protocol: str
    split: str
    manifest_hash: str
    device: str
    threads: int
    points: tuple[Point, ...]

    @property
    def setting(self) -> Setting:
        return Setting(**{one.name: getattr(self, one.name) for one in fields(Setting)})

    def to_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}


def write_points(points: Points, out: Path) -> None:
    """Write the file whole; its folder is made, its folder's folder is not."""
    out.parent.mkdir(exist_ok=True)
    write_whole(out, json.dumps(points.to_json(), indent=2) + "\n")


def read_points(path: Path) -> Points:
    """Read a file of write_points. Raises ValueError that names a damaged one, and OSError."""
    content = read_json(path, MAX_BYTES)
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!s:.200})") from None


def _parse(content: Any) -> Points:
    if not isinstance(content, dict) or type(content.get("format_version")) is not int:
        raise ValueError("it has no format version")
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {content['format_version']}, and this petseg reads {FORMAT_VERSION}")
    points = content.get("points")
    if not isinstance(points, list) or not 1 <= len(points) <= MAX_POINTS:
        raise ValueError(f"points is no list of 1 to {MAX_POINTS} models")
    setting = _strict(Setting, {one.name: content.get(one.name) for one in fields(Setting)})
    return Points(**vars(setting), points=tuple(_point(one) for one in points))


def _point(content: Any) -> Point:
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__} where a model is expected")
    names = {one.name for one in fields(Point)}
    if content.keys() != names:
        raise ValueError(f"a model has the fields {', '.join(content)!s:.150}")
    parts: Mapping[str, Any] = {
        "speed": _strict(Speed, content["speed"]),
        "dice_interval_95": _numbers(content["dice_interval_95"], 2),
        "difference_to_first": _numbers(content["difference_to_first"], 3),
    }
    plain = _strict(_Plain, {name: value for name, value in content.items() if name not in parts})
    ends = parts["dice_interval_95"]
    if not 0 <= plain.dice <= 1 or (ends and not -1 <= ends[0] <= plain.dice <= ends[1] <= 2):
        raise ValueError(f"Dice {plain.dice:.6g} with the interval {ends}")
    return Point(**vars(plain), **parts)


@dataclass(frozen=True)
class _Plain:
    """The fields of a Point that JSON holds as they are."""

    name: str
    dice: float
    file_mb: float
    parameters: int
    peak_memory_mb: float


def _strict(kind: type[Kind], content: Any) -> Kind:
    """As `build`, for short texts and for numbers from 0 to LARGEST."""
    made = build(kind, content)
    for name, value in vars(made).items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"{name} has {len(value):,} characters")
        if isinstance(value, int | float) and not 0 <= value <= LARGEST:
            raise ValueError(f"{name} is {value:.6g}")
    return made


def _numbers(content: Any, count: int) -> list[float] | None:
    if content is None:
        return None
    if not isinstance(content, list) or len(content) != count:
        raise TypeError(f"{content!s:.80} where {count} numbers are expected")
    for value in content:
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 2:
            raise ValueError(f"{value!s:.80} where a Dice is expected")
    return [float(value) for value in content]
