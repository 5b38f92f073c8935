"""Faults of labels, found before a GPU is: each with its kind, how often it occurs, examples and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.cause import Cause
from shards.classes import ClassTable
from shards.command import Failure
from shards.labels.observed import Observed
from shards.labels.rules import LabelRules
from shards.manifest import Manifest
from shards.near_duplicates.note import NearDuplicates

MAX_EXAMPLES = 5
MAX_VALUES = 1_000  # distinct values of no class that are counted
FEW_PICTURES = 5
SMALL_SHARE = 1e-4  # of the pixels of train


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what is wrong, and what to do about it."""

    what: str
    advice: str


KINDS = {
    "unknown_value": Kind(
        "masks have values that are in no class", "add them to a class or to `ignore` in classes.toml"
    ),
    "scaled_binary": Kind(
        "masks are 0 and 255 where the class table says 0 and 1, or the other way round",
        "write the masks' own values into classes.toml",
    ),
    "off_by_one": Kind(
        "the values of all masks are those of the class table shifted by one", "shift the values in classes.toml"
    ),
    "colours_or_values": Kind(
        "masks have colours where the class table has values, or the other way round",
        "let `--classes auto` write a table",
    ),
    "lossy": Kind(
        "masks were saved with losses: their values are nearly those of the classes, as in a JPEG",
        "fetch the original masks, or take the nearest class with --lossy-masks nearest",
    ),
    "interpolated": Kind(
        "masks were resized by interpolation: values along their edges mean nothing",
        "resize the original masks to the nearest pixel, or let the packer do it with --image-size-px",
    ),
    "size_differs": Kind("masks have another size than their picture", "fetch or make them again"),
    "swapped": Kind("pictures and masks are swapped: the mask looks like a photo", "exchange --images and --masks"),
    "one_value": Kind("masks have one value alone", "look at them: they may be empty by mistake"),
    "overlap": Kind("pixels are in several classes", "the later class in classes.toml lies on top: order them"),
    "absent_class": Kind(
        "classes never occur in train", "nothing can learn them: remove or merge them, or choose other splits"
    ),
    "only_in_test": Kind(
        "classes occur in val or test and never in train", "choose other splits, or merge these classes"
    ),
    "rare_class": Kind("classes hardly occur in train", "their Dice will be noise: merge them, or add pictures"),
    "near_duplicate": Kind(
        "near-identical pictures lie in several splits",
        "keep a video's frames together with --group-by, or use --drop-duplicates",
    ),
    "other_table": Kind(
        "the class table is another one than the set's", "pack again with --overwrite, or choose another --out"
    ),
}


@dataclass(frozen=True)
class Fault:
    """One kind of fault of a set's labels."""

    kind: str  # of KINDS
    count: int  # of masks, classes or pairs
    examples: tuple[str, ...]

    @property
    def what(self) -> str:
        return KINDS[self.kind].what

    @property
    def advice(self) -> str:
        return KINDS[self.kind].advice

    def __str__(self) -> str:
        more = f"\n    and {self.count - len(self.examples):,} more" if self.count > len(self.examples) else ""
        examples = "".join(f"\n    {example}" for example in self.examples)
        return f"{self.kind} ({self.count:,}): {self.what}; {self.advice}{examples}{more}"


class LabelFaults(Failure):
    """Labels that no training set can hold."""

    def __init__(self, faults: Sequence[Fault], other_problems: Sequence[str] = ()) -> None:
        lines = "\n  ".join([*map(str, faults), *other_problems])
        kinds = f"{len(faults)} kinds of fault" if len(faults) != 1 else "a fault"
        super().__init__(f"the labels have {kinds}:\n  {lines}", Cause.DATA)
        self.faults = tuple(faults)


@dataclass
class Tally:
    """The sum of what was observed of all masks of a set."""

    pixels: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (K + 1,) int64, those to ignore last
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (K,) int64: masks that show the class
    unknown: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)  # masks by kind of fault
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, observed: Observed) -> None:
        if observed.pixels:
            pixels = np.array(observed.pixels, np.int64)
            self._add_pixels(observed.split, pixels, (pixels[:-1] > 0).astype(np.int64))
        for value, count in observed.unknown.items():
            if value in self.unknown or len(self.unknown) < MAX_VALUES:
                self.unknown[value] += count
        for kind, detail in observed.faults:
            self.counts[kind] += 1
            self._add_examples(kind, [detail])

    def merge(self, other: Tally) -> None:
        for split, pixels in other.pixels.items():
            self._add_pixels(split, pixels, other.pictures[split])
        self.unknown.update(other.unknown)
        self.counts.update(other.counts)
        for kind, examples in other.examples.items():
            self._add_examples(kind, examples)

    def _add_pixels(self, split: str, pixels: np.ndarray, pictures: np.ndarray) -> None:
        self.pixels[split] = self.pixels.get(split, 0) + pixels
        self.pictures[split] = self.pictures.get(split, 0) + pictures

    def _add_examples(self, kind: str, examples: Sequence[str]) -> None:
        kept = self.examples.setdefault(kind, [])
        kept += examples[: MAX_EXAMPLES - len(kept)]

    def content(self) -> dict[str, dict[str, list[int]]]:
        """For the manifest: pixels by split and class (those to ignore last), and pictures by split and class."""
        return {
            "pixels": {split: list(map(int, pixels)) for split, pixels in sorted(self.pixels.items())},
            "pictures": {split: list(map(int, pictures)) for split, pictures in sorted(self.pictures.items())},
        }


def mask_faults(tally: Tally, rules: LabelRules | None = None) -> list[Fault]:
    """The faults of single masks; with `rules`, values of no class are explained by all masks together."""
    faults = []
    for kind in KINDS:
        if count := tally.counts[kind]:
            shown = _explain_unknown(tally, rules) if rules and kind == "unknown_value" else kind
            faults.append(Fault(shown, count, tuple(tally.examples[kind])))
    return faults


def _explain_unknown(tally: Tally, rules: LabelRules) -> str:
    """scaled_binary or off_by_one if that explains all values of no class, else unknown_value."""
    if rules.by_colour or not tally.unknown:
        return "unknown_value"
    unknown = {int(value) for value in tally.unknown}
    declared = {value for one in rules.classes for value in one.values}
    if len(declared) <= 2 and (
        (unknown == {255} and max(declared, default=0) == 1) or (unknown == {1} and 255 in declared)
    ):
        return "scaled_binary"
    seen = unknown | _seen_values(tally, rules)
    for step in (1, -1):
        if len(declared) > 1 and {value + step for value in seen - set(rules.ignore_values)} <= declared:
            return "off_by_one"
    return "unknown_value"


def _seen_values(tally: Tally, rules: LabelRules) -> set[int]:
    """Values of the classes that masks without a fault show."""
    totals = sum(tally.pixels.values())
    if isinstance(totals, int):
        return set()
    return {v for one, count in zip(rules.classes, totals, strict=False) if count for v in one.values}


def class_faults(table: ClassTable, tally: Mapping[str, Mapping[str, Sequence[int]]]) -> list[Fault]:
    """Classes that never or hardly occur in train, by the counts that a manifest holds (`packer["labels"]`)."""
    found: dict[str, list[str]] = {}
    for name, kind, detail in _rare_classes(table, tally):
        found.setdefault(kind, []).append(f"{name}{detail}")
    return [Fault(kind, len(names), tuple(names[:MAX_EXAMPLES])) for kind, names in found.items()]


def _rare_classes(
    table: ClassTable, tally: Mapping[str, Mapping[str, Sequence[int]]]
) -> Iterator[tuple[str, str, str]]:
    """(class, kind of fault, detail)"""
    pictures, pixels = tally["pictures"], tally["pixels"]
    if "train" not in pixels:
        return
    total = max(1, sum(pixels["train"]))
    for index, name in enumerate(table.names):
        num_pictures, share = pictures["train"][index], pixels["train"][index] / total
        if not num_pictures:
            others = [split for split in pictures if split != "train" and pictures[split][index]]
            yield name, "only_in_test" if others else "absent_class", f", in {' and '.join(others)}" if others else ""
        elif num_pictures < FEW_PICTURES or share < SMALL_SHARE:
            yield name, "rare_class", f", in {num_pictures:,} pictures of train and {share:.3%} of its pixels"


def set_faults(manifest: Manifest, duplicates: NearDuplicates | None) -> list[Fault]:
    """The faults of a packed set that its manifest and its note of near-duplicates tell; none without a class table."""
    if manifest.classes is None:
        return []
    labels: Any = manifest.packer.get("labels")
    of_classes = class_faults(manifest.classes, labels) if _are_counts(labels, len(manifest.classes)) else []
    return [*of_classes, *(duplicate_faults(duplicates) if duplicates else [])]


def _are_counts(labels: Any, num_classes: int) -> bool:
    """Whether a manifest that anybody could have written holds counts of pixels and pictures by split and class."""
    try:
        pixels, pictures = labels["pixels"], labels["pictures"]
        return pixels.keys() == pictures.keys() and all(
            len(counts) == wanted and all(type(count) is int and count >= 0 for count in counts)
            for by_split, wanted in ((pixels, num_classes + 1), (pictures, num_classes))
            for counts in by_split.values()
        )
    except (KeyError, TypeError, AttributeError):
        return False


def duplicate_faults(duplicates: NearDuplicates) -> list[Fault]:
    """Near-identical pictures of two splits."""
    if not duplicates.total:
        return []
    pairs = duplicates.pairs[:MAX_EXAMPLES]
    examples = tuple(f"{pair.split}/{pair.key} and {pair.other_split}/{pair.other}" for pair in pairs)
    return [Fault("near_duplicate", duplicates.total, examples)]


def table_faults(table: ClassTable, of_set: ClassTable) -> list[Fault]:
    """The differences between a class table and that of a set."""
    differences = []
    for index in range(max(len(table), len(of_set))):
        ours, theirs = ((one.names[index] if index < len(one) else "nothing") for one in (table, of_set))
        if ours != theirs:
            differences.append(f"{index} is {ours} here, and {theirs} in the set")
    return [Fault("other_table", len(differences), tuple(differences[:MAX_EXAMPLES]))] if differences else []
