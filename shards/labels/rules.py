"""classes.toml: the classes of a data set, and which values or colours of its masks stand for each of them.

name = "camvid"

ignore = [11]

[[class]]
name = "sky"
values = [0]
display = "#468cb4"

Each class has `values` (0 to 65535), or `colours` ("#rrggbb"), or neither if each class has a file of its own. `rest =
true` marks the class of the pixels that no file and no instance covers. `ignore` takes values or colours as well.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.classes import (
    IGNORE_VALUE,
    MAX_CLASSES,
    ClassEntry,
    ClassTable,
    Colour,
    distinct_colours,
    name_problem,
)
from shards.files import read_text_file

MAX_VALUE = 65_535
CLASS_KEYS = {"name", "values", "colours", "display", "rest"}
TABLE_KEYS = {"name", "attribution", "ignore", "class"}
DEFAULT_NAME = "pictures"


@dataclass(frozen=True)
class ClassRule:
    """A class, and the values or colours that masks have for it."""

    name: str
    values: tuple[int, ...]
    colours: tuple[Colour, ...]
    display: Colour
    is_rest: bool = False


@dataclass(frozen=True)
class LabelRules:
    """All classes of a data set in the order of their indices."""

    name: str
    attribution: str
    classes: tuple[ClassRule, ...]
    ignore_values: tuple[int, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()

    @property
    def by_colour(self) -> bool:
        return any(one.colours for one in self.classes)

    @property
    def rest(self) -> int:
        """The index of pixels that nothing covers: the class that is marked so, else they are ignored."""
        return next((index for index, one in enumerate(self.classes) if one.is_rest), IGNORE_VALUE)

    def table(self) -> ClassTable:
        return ClassTable(tuple(ClassEntry(one.name, index, one.display) for index, one in enumerate(self.classes)))

    def indices(self) -> dict[int, int]:
        """Value of a mask -> class index or IGNORE_VALUE; colours as 0xrrggbb."""
        ignored = self.ignore_values if not self.by_colour else tuple(map(code_of, self.ignore_colours))
        found = dict.fromkeys(ignored, IGNORE_VALUE)
        for index, one in enumerate(self.classes):
            found |= dict.fromkeys(map(code_of, one.colours) if self.by_colour else one.values, index)
        return found

    def content(self) -> dict[str, Any]:
        """As in the TOML file, for the manifest."""
        classes = []
        for one in self.classes:
            entry: dict[str, Any] = {"name": one.name, "display": hex_of(one.display)}
            if one.values:
                entry["values"] = list(one.values)
            if one.colours:
                entry["colours"] = [hex_of(colour) for colour in one.colours]
            if one.is_rest:
                entry["rest"] = True
            classes.append(entry)
        ignore = [*self.ignore_values, *map(hex_of, self.ignore_colours)]
        return {"name": self.name, "attribution": self.attribution, "ignore": ignore, "class": classes}


def code_of(colour: Colour) -> int:
    """0xrrggbb"""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def hex_of(colour: Colour) -> str:
    return f"#{code_of(colour):06x}"


def load_rules(path: Path) -> LabelRules:
    """Read classes.toml; raises ValueError that names the file, and the class that is wrong."""
    try:
        content = tomllib.loads(read_text_file(path, "the class table"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: `--classes auto` writes a class table from what is in the masks"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML ({error})") from None
    try:
        return rules_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def rules_of(content: dict[str, Any]) -> LabelRules:
    """The rules that a class table says; raises ValueError that says what is wrong with it."""
    if odd := content.keys() - TABLE_KEYS:
        raise ValueError(f"unknown key {sorted(odd)[0]!r}: it has {', '.join(sorted(TABLE_KEYS))}")
    entries = content.get("class")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_CLASSES:
        raise ValueError(f"1 to {MAX_CLASSES} [[class]] tables are needed")
    displays = distinct_colours(len(entries))
    classes = tuple(_class_of(entry, display) for entry, display in zip(entries, displays, strict=True))
    ignore = content.get("ignore", [])
    values, colours = _split_values(ignore if isinstance(ignore, list) else [ignore], "ignore")
    name, attribution = content.get("name", DEFAULT_NAME), content.get("attribution", "")
    if name_problem(name) or not isinstance(attribution, str):
        raise ValueError(f"name is {name!r} and attribution {attribution!r}: both are texts")
    rules = LabelRules(name, attribution, classes, values, colours)
    _check(rules)
    return rules


def _class_of(entry: Any, display: Colour) -> ClassRule:
    if not isinstance(entry, dict) or "name" not in entry:
        raise ValueError(f"a class is {entry!r}: it needs a name")
    name = entry["name"]
    if problem := name_problem(name):
        raise ValueError(problem)
    if odd := entry.keys() - CLASS_KEYS:
        raise ValueError(f"class {name!r} has the unknown key {sorted(odd)[0]!r}: {', '.join(sorted(CLASS_KEYS))}")
    values, none = _split_values(entry.get("values", []), f"class {name!r}: values")
    others, colours = _split_values(entry.get("colours", []), f"class {name!r}: colours")
    if none or others:
        raise ValueError(f'class {name!r}: values are numbers, and colours texts such as "#808080"')
    if type(entry.get("rest", False)) is not bool:
        raise ValueError(f"class {name!r}: rest is true or false")
    shown = _split_values([entry["display"]], f"class {name!r}: display")[1] if "display" in entry else (display,)
    if not shown:
        raise ValueError(f'class {name!r}: display is {entry["display"]!r}, not a colour such as "#808080"')
    return ClassRule(name, values, colours, shown[0], entry.get("rest", False))


def _split_values(entries: Any, where: str) -> tuple[tuple[int, ...], tuple[Colour, ...]]:
    """Numbers, and colours "#rrggbb"."""
    values, colours = [], []
    for entry in entries if isinstance(entries, list) else [entries]:
        if type(entry) is int and 0 <= entry <= MAX_VALUE:
            values.append(entry)
        elif isinstance(entry, str) and re.fullmatch("#[0-9a-fA-F]{6}", entry):
            colours.append((int(entry[1:3], 16), int(entry[3:5], 16), int(entry[5:7], 16)))
        else:
            raise ValueError(f'{where} has {entry!r}: a number from 0 to {MAX_VALUE}, or a colour such as "#808080"')
    return tuple(values), tuple(colours)


def _check(rules: LabelRules) -> None:
    """Raises ValueError for two classes of one name or value, and for values beside colours."""
    _refuse_twice([one.name for one in rules.classes], "the name")
    _refuse_twice([*(v for one in rules.classes for v in one.values), *rules.ignore_values], "the value")
    colours = [*(c for one in rules.classes for c in one.colours), *rules.ignore_colours]
    _refuse_twice([hex_of(colour) for colour in colours], "the colour")
    if rules.by_colour and (any(one.values for one in rules.classes) or rules.ignore_values):
        raise ValueError("some classes have values and others colours: masks have the ones or the others")
    if not rules.by_colour and rules.ignore_colours:
        raise ValueError("ignore has colours, and the classes have values")
    if sum(one.is_rest for one in rules.classes) > 1:
        raise ValueError("two classes have rest = true")


def _refuse_twice(entries: Sequence[object], what: str) -> None:
    for entry, count in Counter(entries).items():
        if count > 1:
            raise ValueError(f"{what} {entry} is there {count} times")
