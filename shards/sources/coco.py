"""Pictures with the annotations of COCO's instances_*.json, drawn as masks of classes.

The annotations of a large set take gigabytes once they are parsed. So the file is read piece by piece, and a sample
holds only where in it its annotations lie; the processes that pack read them from there.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.classes import IGNORE_VALUE, distinct_colours, name_problem
from shards.command import Failure
from shards.files import open_regular
from shards.labels.masks import MaskSource, observe
from shards.labels.observed import LabelProblem, Observed
from shards.labels.rules import ClassRule, LabelRules, rules_of
from shards.labels.shapes import shape_of
from shards.manifest import Source
from shards.sources.json_spans import find_entries, map_file
from shards.sources.keys import key_of
from shards.sources.listing import NAMED, Listing, Mask, NamedSample
from shards.sources.patterns import SplitOptions, as_mask, below, choose_splits, common_root
from shards.sources.splits import SPLIT_WORDS, groups_of, refuse_divided
from shards.sources.walk import links_in

BACKGROUND = "background"
SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoOptions:
    """A folder of pictures and a file of annotations; both may hold {split}."""

    images: str
    annotations: str
    splits: SplitOptions = field(default_factory=SplitOptions)


@dataclass(frozen=True)
class Annotated(NamedSample):
    """A picture with the places of its annotations."""

    size: tuple[int, int]  # height and width, to which its annotations were drawn
    annotations: Path
    spans: array[int]  # start and end of each, in turn, in the file of annotations
    rules: LabelRules = field(repr=False)

    def files(self) -> tuple[Path, ...]:
        return self.picture, self.annotations

    def read_mask(self, picture: np.ndarray) -> Mask:
        """Crowds first, then instances from large to small, so that small ones stay visible."""
        height, width = picture.shape[:2]
        where = f"{self.annotations}, {self.picture.name}"
        if (height, width) != self.size:
            drawn = f"{self.size[1]} x {self.size[0]}"
            raise self._problem(
                "size_differs", where, f"{where}: drawn on {drawn}, and the picture is {width} x {height}"
            )
        indices = np.full((height, width), self.rules.rest, np.uint8)
        categories = self.rules.indices()
        for entry in sorted(self._read(where), key=_drawing_order):
            category = entry.get("category_id")
            if category not in categories:
                raise self._problem("unknown_value", where, f"{where}: category {category!r} is in no class")
            try:
                shape = shape_of(entry.get("segmentation"), height, width)
            except (ValueError, TypeError) as error:
                raise Failure(f"{where}: annotation {entry.get('id')!r} cannot be drawn ({error})") from None
            indices[shape] = IGNORE_VALUE if entry.get("iscrowd") else categories[category]
        return as_mask(observe(indices, len(self.rules.classes), MaskSource((), where, self.split)))

    def _problem(self, kind: str, where: str, detail: str) -> LabelProblem:
        return LabelProblem(detail, Observed(where, self.split, (), faults=((kind, detail),)))

    def _read(self, where: str) -> Iterator[dict[str, Any]]:
        if not self.spans:
            return
        with open_regular(self.annotations) as file:
            for start, end in zip(self.spans[::2], self.spans[1::2], strict=True):
                file.seek(start)
                try:
                    yield json.loads(file.read(end - start))
                except ValueError as error:
                    raise Failure(f"{where}: the annotations were changed while they were read ({error})") from None


def _drawing_order(entry: Mapping[str, Any]) -> tuple[bool, float, str]:
    area = entry.get("area")
    return not entry.get("iscrowd"), -float(area) if isinstance(area, int | float) else 0.0, str(entry.get("id"))


@dataclass(frozen=True)
class _Instances:
    """The content of one file of annotations."""

    path: Path
    folder: Path
    word: str  # of its split, "" without {split}
    categories: dict[int, str]
    pictures: dict[int, str]  # file name by id
    sizes: dict[int, tuple[int, int]]  # height and width by id
    spans: dict[int, array[int]]  # by picture's id


def read_coco(options: CocoOptions, rules: LabelRules | None) -> Listing:
    """List the pictures of all annotation files; the classes are the categories, unless `rules` merge them.

    Raises ValueError that names the file: it is missing or no COCO JSON, a picture leads out of its folder, two
    pictures have one key.
    """
    found = [_read_instances(path, folder, word) for path, folder, word in _sources(options)]
    rules = rules or _rules_of_categories(found)
    words = [one.word for one in found for _ in one.pictures]
    names = [PurePosixPath(name).with_suffix("").as_posix() for one in found for name in one.pictures.values()]
    if len(set(names)) < len(names):
        names = [f"{word}/{name}" if word else name for word, name in zip(words, names, strict=True)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two pictures have the key {twice[0]!r} in {options.annotations}")
    splits, unlisted = choose_splits(names, words, any(words), options.splits)
    groups = groups_of(splits, options.splits.group_by)
    refuse_divided(groups, splits)
    entries = [(one, number, file_name) for one in found for number, file_name in one.pictures.items()]
    samples = tuple(
        Annotated(
            key=key_of(name),
            name=name,
            split=splits[name],
            group=groups[name],
            picture=one.folder / file_name,
            size=one.sizes[number],
            annotations=one.path,
            spans=one.spans.get(number, array("q")),
            rules=rules,
        )
        for name, (one, number, file_name) in zip(names, entries, strict=True)
        if name in splits
    )
    for one in found:
        _check_pictures(one)
    return Listing(
        source=Source(rules.name, rules.attribution, values={}),
        samples=samples,
        oddities={"unlisted_picture": tuple(unlisted)} if unlisted else {},
        rules=rules,
        settings=_settings(options, rules),
    )


def rules_of_annotations(options: CocoOptions) -> LabelRules:
    """Background and the categories of the annotations as classes; raises as `read_coco`."""
    return _rules_of_categories([_read_instances(*source) for source in _sources(options)])


def _sources(options: CocoOptions) -> Iterator[tuple[Path, Path, str]]:
    """(annotations, folder of pictures, word for the split) of each annotation file."""
    if "{split}" not in options.annotations:
        if "{split}" in options.images:
            raise ValueError("--images has {split}, so --coco needs it too, as in 'instances_{split}2017.json'")
        yield Path(options.annotations), Path(options.images), ""
        return
    words = [word for word in SPLIT_WORDS if Path(options.annotations.replace("{split}", word)).is_file()]
    if not words:
        raise ValueError(f"no file {options.annotations!r} for {{split}} in {', '.join(SPLIT_WORDS)}")
    for word in words:
        yield Path(options.annotations.replace("{split}", word)), Path(options.images.replace("{split}", word)), word


def _read_instances(path: Path, folder: Path, word: str) -> _Instances:
    categories: dict[int, str] = {}
    pictures: dict[int, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    spans: dict[int, array[int]] = {}
    try:
        with map_file(path) as data:
            for section, start, end in find_entries(data, SECTIONS):
                entry = json.loads(data[start:end])
                if section == "categories":
                    categories[_unused(entry["id"], categories, section)] = entry["name"]
                elif section == "images":
                    number = _unused(entry["id"], pictures, section)
                    pictures[number] = _checked(entry["file_name"])
                    sizes[number] = _number(entry["height"]), _number(entry["width"])
                else:
                    spans.setdefault(_number(entry["image_id"]), array("q")).extend((start, end))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no COCO JSON of images, annotations and categories ({error})") from None
    if not pictures or not categories:
        raise ValueError(f"{path} has {len(pictures)} images and {len(categories)} categories")
    if odd := [number for number in spans if number not in pictures]:
        raise ValueError(f"{path}: annotations are of the image {odd[0]}, which it does not list")
    return _Instances(path, folder, word, categories, pictures, sizes, spans)


def _check_pictures(one: _Instances) -> None:
    """Raises ValueError for pictures that are missing, and for a link, of a folder too, that leads out of theirs."""
    inside = one.folder.resolve()
    files: dict[Path, dict[str, bool]] = {}  # whether each is a link; one listing, since many stats take minutes
    missing = []
    for name in one.pictures.values():
        path = one.folder / name
        if path.parent not in files:
            where = path.parent.resolve()
            if not where.is_relative_to(inside):
                raise ValueError(f"{path.parent} leads out of {one.folder}, to {where}: put the folder itself there")
            files[path.parent] = links_in(path.parent)
        is_link = files[path.parent].get(path.name)
        if is_link is None:
            missing.append(str(path))
        elif is_link and not path.resolve().is_relative_to(inside):
            raise ValueError(f"{path} is a link out of {one.folder}, to {path.resolve()}: put the file itself there")
    if missing:
        raise ValueError(f"{len(missing)} pictures of {one.path} are missing: {', '.join(missing[:NAMED])}")


def _number(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError(f"an id is {str(value)[:40]!r}")
    return value


def _unused(value: Any, used: Mapping[int, str], section: str) -> int:
    """An entry's id; files that were joined can number two alike."""
    if _number(value) in used:
        raise ValueError(f"two {section} have the id {value}")
    return _number(value)


def _checked(name: Any) -> str:
    """A picture's file name; raises ValueError for one that leads out of its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"a file_name is {name!r}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the file_name {name!r} leads out of the folder of pictures")
    return name


def _rules_of_categories(found: list[_Instances]) -> LabelRules:
    """Background, and each category in order of its number."""
    categories = found[0].categories
    for one in found[1:]:
        if one.categories != categories:
            raise ValueError(f"{found[0].path} and {one.path} have other categories")
    names = [str(name).strip() for _, name in sorted(categories.items())]
    if problem := next(filter(None, map(name_problem, names)), ""):
        raise ValueError(f"{found[0].path}: {problem}")
    displays = distinct_colours(len(names) + 1)
    classes = [ClassRule(BACKGROUND, (), (), (0, 0, 0), is_rest=True)] if BACKGROUND not in names else []
    classes += [
        ClassRule(name, (number,), (), display)
        for name, number, display in zip(names, sorted(categories), displays[1:], strict=True)
    ]
    return rules_of(LabelRules("coco", "", tuple(classes)).content())  # which checks them


def _settings(options: CocoOptions, rules: LabelRules) -> dict[str, Any]:
    images, annotations = Path(options.images), Path(options.annotations)
    root = common_root(images, annotations.parent)
    coco = {
        "images": below(images, root),
        "annotations": below(annotations, root),
        **options.splits.content(root),
    }
    return {"coco": coco, "classes": rules.content()}


def coco_again(packer: Mapping[str, Any], root: Path) -> Listing:
    """The samples that a set was packed from, by its manifest's packer; raises as `patterns.pairs_again`."""
    coco = packer["coco"]
    splits = SplitOptions.again(coco, root, packer["seed"])
    options = CocoOptions(str(root / coco["images"]), str(root / coco["annotations"]), splits)
    return read_coco(options, rules_of(packer["classes"]))
