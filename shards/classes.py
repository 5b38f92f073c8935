"""The class table of a shard set: which class each value of its masks stands for.

Pure standard library, as the manifest, which holds the table.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

from shards.command import printable

IGNORE_VALUE = 255  # of pixels that neither loss nor metrics count
IGNORED = "ignored"  # its name beside the classes' names
MAX_CLASSES = 254  # values 0 to 253; 254 marks a pixel of no class while masks are read
MAX_NAME_LENGTH = 60

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassEntry:
    """One class: its name, its value in the packed masks, and the colour to show it in."""

    name: str
    value: int
    colour: Colour


@dataclass(frozen=True)
class ClassTable:
    """The classes of a shard set in order of their values, which are 0 to K - 1."""

    classes: tuple[ClassEntry, ...]
    ignore_value: int = IGNORE_VALUE

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.classes)

    @property
    def values(self) -> dict[str, int]:
        """What the values of a mask mean, by name."""
        return {**{one.name: one.value for one in self.classes}, IGNORED: self.ignore_value}

    def __len__(self) -> int:
        return len(self.classes)


def table_of_json(content: Any) -> ClassTable:
    """The class table that a manifest holds; raises ValueError that says what no reader could use."""
    try:
        entries = tuple(ClassEntry(one["name"], one["value"], tuple(one["colour"])) for one in content["classes"])
        table = ClassTable(entries, content["ignore_value"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"its class table is damaged ({error!r})") from None
    if problem := _problem_of(table):
        raise ValueError(problem)
    return table


def name_problem(name: object) -> str:
    """Why a class cannot have this name; empty if it can."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_LENGTH or name != name.strip():
        return f"a class is named {name!r}: 1 to {MAX_NAME_LENGTH} characters, without spaces around them"
    if name == IGNORED or printable(name) != name or "\n" in name:
        return f"a class is named {name!r}, which is taken or cannot be shown"
    return ""


def is_colour(value: object) -> bool:
    """Whether a value is three bytes."""
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def _problem_of(table: ClassTable) -> str:
    if not 1 <= len(table) <= MAX_CLASSES:
        return f"it has {len(table)} classes: 1 to {MAX_CLASSES} are possible"
    if table.ignore_value != IGNORE_VALUE or type(table.ignore_value) is not int:
        return f"its ignore value is {table.ignore_value!r}, not {IGNORE_VALUE}"
    for index, one in enumerate(table.classes):
        if problem := name_problem(one.name):
            return problem
        if type(one.value) is not int or one.value != index:
            return f"class {one.name!r} has the value {one.value!r}, not {index}"
        if not is_colour(one.colour):
            return f"class {one.name!r} has the colour {one.colour!r}"
    if len(set(table.names)) < len(table):
        return "two of its classes have one name"
    return ""


def distinct_colours(count: int) -> list[Colour]:
    """Colours to show classes in, which are far apart for as long as possible."""
    colours = []
    for index in range(count):
        hue = index * 0.61803398875 % 1  # the golden ratio: each new hue falls into the widest gap
        saturation, brightness = (0.55, 0.9)[index % 2], (0.95, 0.75, 0.5)[index % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, brightness))
        colours.append((red, green, blue))
    return colours
