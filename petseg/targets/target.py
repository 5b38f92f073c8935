"""What a network learns: the classes that the labels of a shard set stand for (numpy only).

A set without a class table offers the targets of its module here by name; a set with one is learnt as it was packed.
Either can be merged into fewer classes by a file, and pixels can be left out of loss and metrics:

    # coarse.toml, chosen by --data.target coarse.toml
    ignore = ["Bicyclist"]

    [classes]
    background = ["Sky"]
    road = ["Road", "Pavement"]

Each class of the set is named once, either under [classes] or in `ignore`, so that none is left out by mistake. A class
named `background` counts in the loss, and in no mean of Dice or IoU.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petseg.config import DataConfig
from petseg.config.marks import is_target_file
from petseg.data.store import Store
from petseg.targets import TARGET_NAME, pets
from petseg.targets.words import Words
from shards.cause import Cause
from shards.classes import IGNORE_VALUE, ClassEntry, ClassTable, distinct_colours, name_problem, table_of_json
from shards.command import Failure
from shards.files import decode_json, read_regular, write_whole
from shards.manifest import THREE_VALUES, Manifest

BACKGROUND = "background"
AS_PACKED = "as_packed"
LABELS = 256  # values that a label can have
ALIASES = {"auto": pets.IMPLIED, AS_PACKED: pets.THREE_CLASSES}  # in a set without a class table

Table = NDArray[np.uint8]  # (R, 256): the class of each label, IGNORE_VALUE where it is left out


@dataclass(frozen=True)
class Target:
    """The classes 0 to K - 1 of a run, and how labels become classes.

    `rules` has a table for each way to count disputed pixels, such as those between two classes. The run is trained by
    `rule`, and measured by all of them. Where the class of a pixel depends on its sample, a table has a row for each
    kind of sample (`kinds`), else one row.
    """

    name: str
    classes: tuple[ClassEntry, ...]
    rules: Mapping[str, Table]
    rule: str
    kinds: tuple[str, ...] = ()
    by: str = ""  # what the kinds are, such as species
    labels: Mapping[str, int] = field(default_factory=dict)  # of the shard set, by name: what the tables were made for
    counted: tuple[int, ...] = field(init=False)  # the classes whose Dice and IoU are averaged

    def __post_init__(self) -> None:
        counted = tuple(one.value for one in self.classes if one.name != BACKGROUND)
        object.__setattr__(self, "counted", counted)
        if len(self.classes) < 2 or not counted:
            names = ", ".join(one.name for one in self.classes) or "none"
            raise ValueError(
                f"data.target = {self.name!r} has the classes {names}: two are needed, one not {BACKGROUND}"
            )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.classes)

    @property
    def table(self) -> Table:
        return self.rules[self.rule]

    @property
    def is_implied(self) -> bool:
        """Whether a run learns this without saying so, in a set without a class table, and need not keep it."""
        return self.name == pets.IMPLIED

    @property
    def floor_name(self) -> str:
        """The name of the Dice that the best single class has everywhere."""
        return pets.FLOOR_NAME if self.is_implied else "one_class_dice"

    @property
    def has_table(self) -> bool:
        """Whether the shard set has a class table."""
        return set(self.labels) != set(THREE_VALUES)

    @property
    def words(self) -> Words:
        """What people call its parts."""
        if self.has_table:
            return Words()
        return pets.IMPLIED_WORDS if self.is_implied else pets.KIND_WORDS

    @property
    def is_binary(self) -> bool:
        """Whether there are two classes, of which the second is what is looked for."""
        return len(self) == 2 and self.counted == (1,)

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """(N,) the row of the tables that holds for each sample, by its key; raises ValueError for an unknown kind."""
        if not self.kinds:
            return np.zeros(len(keys), np.int64)
        number = {kind: row for row, kind in enumerate(self.kinds)}
        kinds = [pets.kind_of(key, self.by) for key in keys]
        if others := [position for position, kind in enumerate(kinds) if kind not in number]:
            raise ValueError(
                f"{keys[others[0]]} is of the {self.by} {kinds[others[0]]}, which is none of the {len(number)} that "
                "this run learns: choose a shard set without it"
            )
        return np.array([number[kind] for kind in kinds], np.int64)


def resolve_target(data: DataConfig, store: Store, folder: Path | None = None) -> Target:
    """The target of a run: the one that its folder keeps, or what `data.target` says of the shard set.

    Raises ValueError for a target that the set does not have, and for a file that cannot be used.
    """
    manifest = store.manifest
    if folder is not None and (kept := load_target(folder)) is not None:
        if dict(kept.labels) != manifest.mask_values:
            raise ValueError(
                f"{folder} was trained on masks of {_listed(kept.labels)}, and those of {store.location} have "
                f"{_listed(manifest.mask_values)}: choose a shard set with the same classes"
            )
        return kept
    if is_target_file(data.target):
        return merged(data.target, packed_target(data, manifest))
    if manifest.classes is not None:
        if data.target not in ("auto", AS_PACKED):
            raise ValueError(
                f"data.target = {data.target!r}: {store.location} has a class table: leave it out, choose {AS_PACKED}, "
                "or name a .toml file that merges classes"
            )
        return packed_target(data, manifest)
    return named_target(data, store)


def num_classes_of(data: DataConfig, manifest: Manifest | None) -> int:
    """The number of classes of a run without a look at its samples; where there is no set yet, of one without a table.

    Raises ValueError for a file that cannot be used.
    """
    if data.target in pets.BY_KIND:
        return pets.BY_KIND[data.target]
    if is_target_file(data.target) and manifest is not None:
        return len(merged(data.target, packed_target(data, manifest)))
    if manifest is not None and manifest.classes is not None:
        return len(manifest.classes)
    return 2 if data.target in ("auto", pets.IMPLIED) else 3


def named_target(data: DataConfig, store: Store) -> Target:
    """A target of a set without a class table."""
    name = ALIASES.get(data.target, data.target)
    if name not in pets.NAMED_TARGETS:
        choices = ", ".join((*pets.NAMED_TARGETS, AS_PACKED))
        raise ValueError(f"data.target = {data.target!r}: choose one of {choices}, or a .toml file that merges classes")
    kinds: tuple[str, ...] = ()
    if name in pets.BY_KIND:
        keys = [] if store.manifest.packer.get("foreign") else _all_keys(store)
        kinds = pets.kinds_of_keys(name, keys, store.location)
    names, rules = pets.rules_of(name, store.manifest.source.values, kinds)
    rule = pets.rule_name(data.border) if len(rules) > 1 else next(iter(rules))
    return Target(name, _coloured(names), rules, rule, kinds, name, store.manifest.mask_values)


def implied_target(labels: Mapping[str, int] = THREE_VALUES, chosen: str = "fg") -> Target:
    """The target of a run that keeps none; raises ValueError for a value of data.border that there is not."""
    names, rules = pets.rules_of(pets.IMPLIED, labels, ())
    if (rule := pets.rule_name(chosen)) not in rules:
        raise ValueError(f"data.border is {chosen!r}")
    return Target(pets.IMPLIED, _coloured(names), rules, rule, labels=labels)


def packed_target(data: DataConfig, manifest: Manifest) -> Target:
    """The classes of the set as they are."""
    if manifest.classes is None:
        names, rules = pets.rules_of(pets.THREE_CLASSES, manifest.source.values, ())
        return Target(AS_PACKED, _coloured(names), rules, "", labels=manifest.mask_values)
    if data.border != "fg":
        raise ValueError(
            f"data.border = {data.border!r}: this shard set has a class table, and this rule is for sets without "
            "one: leave it out"
        )
    table = np.full((1, LABELS), IGNORE_VALUE, np.uint8)
    for one in manifest.classes.classes:
        table[0, one.value] = one.value
    return Target(AS_PACKED, manifest.classes.classes, {"": table}, "", labels=manifest.mask_values)


def merged(path: str, packed: Target) -> Target:
    """The target that a file makes of a set's classes; raises ValueError that says what the file lacks."""
    try:
        content = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"data.target = {path!r} cannot be read ({error})") from None
    members, ignored = content.get("classes"), content.get("ignore", [])
    odd = sorted(set(content) - {"classes", "ignore"})
    if not isinstance(members, dict) or not members or odd or not _are_names(ignored):
        raise ValueError(f'{path}: expected [classes], each as `name = ["A", "B"]`, and `ignore`, a list of names')
    for name, own in members.items():
        if problem := name_problem(name):
            raise ValueError(f"{path}: {problem}")
        if not _are_names(own) or not own:
            raise ValueError(f"{path}: class {name} is {own!r}, not a list of classes of the shard set")
    _require_each_once(path, [*(one for own in members.values() for one in own), *ignored], packed.names)
    by_name = {one.name: one for one in packed.classes}
    classes = tuple(ClassEntry(name, i, by_name[own[0]].colour) for i, (name, own) in enumerate(members.items()))
    new_class = {by_name[one].value: value for value, own in enumerate(members.values()) for one in own}
    table = np.full((1, LABELS), IGNORE_VALUE, np.uint8)
    for label, old in enumerate(packed.table[0]):
        table[0, label] = new_class.get(int(old), IGNORE_VALUE)
    return Target(Path(path).name, classes, {"": table}, "", labels=packed.labels)


def save_target(target: Target, folder: Path) -> None:
    """Write target.json, from which the run's classes are known without its shard set."""
    content = {
        "format_version": 1,
        "name": target.name,
        "classes": asdict(ClassTable(target.classes))["classes"],
        "rules": {name: table.tolist() for name, table in target.rules.items()},
        "rule": target.rule,
        "kinds": list(target.kinds),
        "by": target.by,
        "labels": dict(target.labels),
    }
    write_whole(folder / TARGET_NAME, json.dumps(content) + "\n")


def load_target(folder: Path) -> Target | None:
    """The target that a run's folder keeps; None if it keeps none. Raises Failure for a damaged file."""
    path = folder / TARGET_NAME
    try:
        content = decode_json(read_regular(path, follow=False).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Failure(f"{path} is damaged ({error})", Cause.DATA) from None
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Failure(f"{path} is damaged ({error!r})", Cause.DATA) from None


def _parse(content: Any) -> Target:
    table = table_of_json({"classes": content["classes"], "ignore_value": IGNORE_VALUE})
    kinds = tuple(map(str, content["kinds"]))
    rules = {str(name): np.array(rows, np.uint8) for name, rows in content["rules"].items()}
    labels = {str(name): int(value) for name, value in content["labels"].items()}
    target = Target(str(content["name"]), table.classes, rules, str(content["rule"]), kinds, str(content["by"]), labels)
    for rows in (target.table, *rules.values()):
        if rows.shape != (max(1, len(kinds)), LABELS):
            raise ValueError(f"a table has the shape {rows.shape}")
        if ((rows >= len(target)) & (rows != IGNORE_VALUE)).any():
            raise ValueError("a table holds a class that there is not")
    return target


def _coloured(names: Sequence[str]) -> tuple[ClassEntry, ...]:
    colours = distinct_colours(len(names))
    return tuple(ClassEntry(name, value, colours[value]) for value, name in enumerate(names))


def _listed(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in labels.items())


def _all_keys(store: Store) -> list[str]:
    return [sample.key for shard in store.manifest.shards for sample in store.index(shard.name)]


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _require_each_once(path: str, named: Sequence[str], names: Sequence[str]) -> None:
    """Raises ValueError unless a file names each class of the set exactly once."""
    if unknown := [one for one in named if one not in names]:
        raise ValueError(f"{path}: {unknown[0]!r} is no class of the shard set ({', '.join(names)})")
    if twice := [one for one in names if named.count(one) > 1]:
        raise ValueError(f"{path} names {twice[0]} {named.count(twice[0])} times")
    if missing := [one for one in names if one not in named]:
        raise ValueError(
            f"{path} does not say what becomes of {', '.join(missing)}: put them in a class, or in `ignore`"
        )
