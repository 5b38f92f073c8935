"""`--classes auto`: writes a class table from what is in the masks, and a sheet of pictures to check it by."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from shards.classes import MAX_CLASSES, Colour, distinct_colours
from shards.command import Failure
from shards.encoding import open_image, read_source_file
from shards.files import write_whole
from shards.labels.masks import FORMATS, decode_mask
from shards.labels.rules import ClassRule, LabelRules, hex_of
from shards.labels.sheet import draw_sheet
from shards.packing.options import PackConfig
from shards.packing.pictures import read_picture
from shards.packing.plan import CHUNK
from shards.pool import ordered_map
from shards.sources import coco, patterns
from shards.sources.listing import Listed, Listing
from shards.sources.walk import Pattern, find_files, parse_pattern
from shards.terminal import progress

TABLE_NAME, SHEET_NAME = "classes.toml", "classes.png"
MAX_DISTINCT = 1_000  # values of one mask; more are those of a photo, or of a mask saved with losses
MIN_SHARE = 1e-3  # of all pixels that a value needs, where there are more values than classes are possible
SHOWN = 12  # pairs on the sheet
HEADER = """\
# Which values of the masks are which class. Name the classes, merge them by putting several values into one, move
# values that mean nothing to `ignore`, then pack with --classes on this file. docs/data.md explains all keys.
"""

logger = logging.getLogger(__name__)


@dataclass
class Survey:
    """Pixels and masks by value or colour, over all masks."""

    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    palette: dict[int, Colour] = field(default_factory=dict)
    num_colour_masks: int = 0
    num_masks: int = 0
    num_lossy: int = 0

    def add(self, other: Survey) -> None:
        self.pixels.update(other.pixels)
        self.masks.update(other.masks)
        self.palette = other.palette | self.palette
        self.num_colour_masks += other.num_colour_masks
        self.num_masks += other.num_masks
        self.num_lossy += other.num_lossy


def write_table(config: PackConfig) -> tuple[Path, Path]:
    """Write OUT/classes.toml and OUT/classes.png, and return their paths.

    Raises ValueError if there is a table already, and for masks that a table cannot be written for.
    """
    table, sheet = config.out / TABLE_NAME, config.out / SHEET_NAME
    if table.exists():
        raise ValueError(f"{table} is there already: pack with --classes {table}, or remove it first")
    rules, comments = _coco_rules(config) if config.coco else _pattern_rules(config)
    listing = _listing(config, rules)
    config.out.mkdir(parents=True, exist_ok=True)
    write_whole(sheet, draw_sheet(_readable(listing.samples), rules.table()))
    write_whole(table, render(rules, comments))
    return table, sheet


def _listing(config: PackConfig, rules: LabelRules) -> Listing:
    """The pairs, with makeshift splits where the command names none yet."""
    splits = config.splits()
    if not splits.lists and "{split}" not in config.images and not any(splits.shares.values()):
        splits = replace(splits, val_share=0.5, group_by="")
    if config.coco:
        return coco.read_coco(replace(config.coco_options(), splits=splits), rules)
    return patterns.read_pairs(replace(config.pairs(), splits=splits, takes_nearest=True), rules)


def _coco_rules(config: PackConfig) -> tuple[LabelRules, list[str]]:
    rules = coco.rules_of_annotations(config.coco_options())
    return rules, ["" if one.is_rest else f"category {one.values[0]}" for one in rules.classes]


def _pattern_rules(config: PackConfig) -> tuple[LabelRules, list[str]]:
    """The rules, and a comment on each class."""
    pattern = parse_pattern(config.masks, "--masks")
    name = _name_of(config.images)
    if "class" in pattern.names:
        return _rules_of_files(pattern, name)
    survey = _survey([match.path for match in find_files(pattern)], config)
    by_colour = survey.num_colour_masks > 0
    if by_colour and survey.num_colour_masks < survey.num_masks:
        raise ValueError(
            f"{survey.num_colour_masks} of {survey.num_masks} masks have colours, and the others values: bring them "
            "into one form first"
        )
    total = sum(survey.pixels.values())
    values = sorted(survey.pixels)
    if len(values) > MAX_CLASSES or survey.num_lossy:
        values = [value for value in values if survey.pixels[value] >= MIN_SHARE * total]
        logger.warning(
            "the masks have %d different values, as after lossy saving: only those of %.1f %% of the pixels are in the "
            "table, and packing needs --lossy-masks nearest", len(survey.pixels), 100 * MIN_SHARE,
        )  # fmt: skip
    if not 0 < len(values) <= MAX_CLASSES:
        raise ValueError(f"{len(values)} values are frequent in the masks: 1 to {MAX_CLASSES} classes are possible")
    ignored = [255] if not by_colour and 255 in values and len(values) > 2 else []
    kept = [value for value in values if value not in ignored]
    names = (
        ["background", "foreground"] if len(kept) == 2 and kept[0] == 0 else [f"class_{v}" for v in range(len(kept))]
    )
    displays = distinct_colours(len(kept))
    classes = []
    for class_name, value, display in zip(names, kept, displays, strict=True):
        colour = (value >> 16, value >> 8 & 255, value & 255)
        shown = colour if by_colour else survey.palette.get(value, display)
        classes.append(ClassRule(class_name, () if by_colour else (value,), (colour,) if by_colour else (), shown))
    comments = [
        f"{survey.pixels[v]:,} pixels ({survey.pixels[v] / total:.2%}) in {survey.masks[v]:,} masks" for v in kept
    ]
    return LabelRules(name, "", tuple(classes), tuple(ignored)), comments


def _name_of(images: str) -> str:
    """The data set's name: that of the first folder of its pattern that does not say `images`."""
    parts = [part for part in Path(images).parent.parts if "{" not in part and part not in ("/", "..", "images")]
    return parts[-1] if parts else "pictures"


def _rules_of_files(pattern: Pattern, name: str) -> tuple[LabelRules, list[str]]:
    """The rules of masks with one file per class, and a background where none is named so."""
    counts = Counter(match.class_name for match in find_files(pattern))
    names = sorted(counts)
    if "background" not in names:
        names.insert(0, "background")
    displays = distinct_colours(len(names))
    classes = [
        ClassRule(one, (), (), display, is_rest=one == "background")
        for one, display in zip(names, displays, strict=True)
    ]
    return LabelRules(name, "", tuple(classes)), [f"{counts[one]:,} files" if counts[one] else "" for one in names]


def _survey(paths: Sequence[Path], config: PackConfig) -> Survey:
    if not paths:
        raise ValueError(f"no file matches --masks {config.masks!r}")
    chunks = [tuple(paths[start : start + CHUNK]) for start in range(0, len(paths), CHUNK)]
    survey = Survey()
    with progress("looked at", len(paths)) as advance:
        for one in ordered_map(survey_masks, chunks, num_workers=config.num_workers(len(paths))):
            survey.add(one)
            advance(one.num_masks)
    return survey


def survey_masks(paths: tuple[Path, ...]) -> Survey:
    """Count the values or colours in some masks; raises Failure that names a file that cannot be read."""
    survey = Survey()
    for path in paths:
        decoded = decode_mask(path, by_colour=False)
        values, counts = np.unique(decoded.values, return_counts=True)
        survey.num_masks += 1
        survey.num_colour_masks += decoded.is_colour
        survey.num_lossy += decoded.format == "JPEG" or len(values) > MAX_DISTINCT
        order = np.argsort(-counts, kind="stable")[:MAX_DISTINCT]
        survey.pixels.update({int(values[i]): int(counts[i]) for i in order})
        survey.masks.update(int(values[i]) for i in order)
        survey.palette |= _palette_of(path) if not survey.palette else {}
    return survey


def _palette_of(path: Path) -> dict[int, Colour]:
    """The colours of a mask's palette by value, if it has one."""
    with open_image(path, read_source_file(path), FORMATS) as image:
        flat = (image.getpalette() or []) if image.mode == "P" else []
    return {index: (flat[3 * index], flat[3 * index + 1], flat[3 * index + 2]) for index in range(len(flat) // 3)}


def _readable(samples: Sequence[Listed]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some pictures with their masks, spread over the whole set; those that cannot be read are logged."""
    for number in range(min(SHOWN, len(samples))):
        sample = samples[number * len(samples) // min(SHOWN, len(samples))]
        try:
            picture = read_picture(sample.picture).pixels
            yield picture, sample.read_mask(picture).pixels
        except Failure as failure:
            logger.warning("not on the sheet: %s", failure)


def render(rules: LabelRules, comments: Sequence[str]) -> str:
    """classes.toml, with a comment on each class."""
    lines = [HEADER, f"name = {_quoted(rules.name)}", 'attribution = ""']
    ignore = [*map(str, rules.ignore_values), *(f'"{hex_of(colour)}"' for colour in rules.ignore_colours)]
    lines += [f"ignore = [{', '.join(ignore)}]", ""]
    for one, comment in zip(rules.classes, comments, strict=True):
        lines += [f"[[class]]{f'  # {comment}' if comment else ''}", f"name = {_quoted(one.name)}"]
        if one.values:
            lines.append(f"values = [{', '.join(map(str, one.values))}]")
        if one.colours:
            lines.append(f"colours = [{', '.join(f'{chr(34)}{hex_of(colour)}{chr(34)}' for colour in one.colours)}]")
        lines.append(f'display = "{hex_of(one.display)}"')
        lines += ["rest = true", ""] if one.is_rest else [""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
