"""Reads mask files of any kind as class indices: values, palettes, colours, 16 bit, 0/255, one file per class.

A mask that does not fit its class table is examined, so that the message can say why: saved with losses, resized by
interpolation, swapped with its picture, or just another value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from shards.classes import IGNORE_VALUE
from shards.command import Failure
from shards.encoding import load_pixels, open_image, read_source_file
from shards.labels.observed import MAX_UNKNOWN, LabelMask, LabelProblem, Observed, count_pixels
from shards.labels.rules import MAX_VALUE, ClassRule, LabelRules

FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
UNKNOWN = 254  # index of a pixel of no class, while a mask is read
NEAR = 24  # levels within which a value is a class's own, saved with losses
MIN_SPACING = 2 * NEAR  # of the classes' values: between closer ones nearness says nothing
MOSTLY = 0.8
MIN_EDGES = 64  # places where a row changes its value; fewer say nothing of interpolation
MAX_STEPS = 0.1  # of these that may lead over a value in between: CamVid has 0.02, and resized by interpolation 0.2
PHOTO_COLOURS, MASK_COLOURS = 200, 64  # a sixteenth of a photo's pixels has at least, and that of a mask at most
SAMPLED = 4  # every fourth pixel of every fourth row

MaskFiles = tuple[tuple[int | None, Path], ...]  # (class index, or None for a mask of all classes; file)


@dataclass(frozen=True)
class MaskSource:
    """The files of a mask, and the sample that it belongs to."""

    files: MaskFiles
    name: str
    split: str
    takes_nearest: bool = False  # class for pixels that lossy saving or interpolation changed


@dataclass(frozen=True)
class Decoded:
    """A mask file's pixels: values, or colours as 0xrrggbb."""

    values: np.ndarray  # (H, W) unsigned
    is_colour: bool
    format: str


def read_mask(source: MaskSource, rules: LabelRules, picture: np.ndarray) -> LabelMask:
    """The class indices of a picture (H, W, 3) uint8.

    Raises Failure that names a file that cannot be read, and LabelProblem for one that does not fit the class table.
    """
    if source.files[0][0] is None:
        indices, faults = _read_whole(source, source.files[0][1], rules, picture)
    else:
        indices, faults = _read_layers(source, rules, picture)
    return observe(indices, len(rules.classes), source, faults)


def observe(
    indices: np.ndarray, num_classes: int, source: MaskSource, faults: Sequence[tuple[str, str]] = ()
) -> LabelMask:
    """A mask of class indices (H, W) uint8 with what is observed of it."""
    pixels = count_pixels(indices, num_classes)
    if sum(1 for count in pixels if count) == 1:
        faults = (
            *faults,
            ("one_value", f"{source.name}: all pixels are {'ignored' if pixels[-1] else 'of one class'}"),
        )
    kinds = tuple(dict.fromkeys(kind for kind, _ in faults))
    return LabelMask(indices, Observed(source.name, source.split, pixels, faults=tuple(faults)), kinds)


def _read_whole(
    source: MaskSource, path: Path, rules: LabelRules, picture: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Indices of a mask of all classes, and its faults that are no obstacle."""
    decoded = decode_mask(path, rules.by_colour)
    if decoded.values.shape != picture.shape[:2]:
        raise _problem(source, "size_differs", _size_words(path, decoded.values, picture))
    if decoded.is_colour != rules.by_colour:
        if _is_swapped(decoded.values, picture):
            raise _problem(source, "swapped", f"{path} looks like a photo, and its picture like a mask")
        kinds = ("colours", "values") if decoded.is_colour else ("values", "colours")
        raise _problem(source, "colours_or_values", f"{path} has {kinds[0]}, and the class table {kinds[1]}")
    return _to_indices(source, path, decoded, rules, picture)


def _to_indices(
    source: MaskSource, path: Path, decoded: Decoded, rules: LabelRules, picture: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    indices = index_table(rules)[decoded.values]
    is_unknown = indices == UNKNOWN
    kind = _fault_of(decoded, is_unknown, rules, picture)
    if not kind:
        return indices, []
    if kind in ("lossy", "interpolated") and source.takes_nearest:
        indices[is_unknown] = _nearest(decoded, is_unknown, rules)
        return indices, [(kind, f"{path}: the nearest class was taken for {int(is_unknown.sum()):,} pixels")]
    if not is_unknown.any():  # interpolated over values that are classes
        return indices, [(kind, f"{path}: the values along its edges lie between those of its areas")]
    unknown = _count_unknown(decoded, is_unknown)
    detail = f"{path}: {int(is_unknown.sum()):,} pixels of no class, {', '.join(list(unknown)[:5])}"
    pixels = count_pixels(indices, len(rules.classes))
    raise LabelProblem(detail, Observed(source.name, source.split, pixels, unknown, ((kind, detail),)))


def _problem(source: MaskSource, kind: str, detail: str) -> LabelProblem:
    return LabelProblem(detail, Observed(source.name, source.split, (), {}, ((kind, detail),)))


def _size_words(path: Path, values: np.ndarray, picture: np.ndarray) -> str:
    (height, width), (picture_height, picture_width) = values.shape, picture.shape[:2]
    turned = ": one of them is turned" if (height, width) == (picture_width, picture_height) else ""
    return f"{path} is {width} x {height}, its picture {picture_width} x {picture_height}{turned}"


def decode_mask(path: Path, by_colour: bool) -> Decoded:
    """A mask file's pixels; palettes and grey are colours only where the class table has colours.

    Raises Failure that names the file.
    """
    image = open_image(path, read_source_file(path), FORMATS)
    load_pixels(path, image)
    kind = image.format or ""
    if image.mode in WIDE_MODES:
        exact = np.asarray(image)
        with np.errstate(invalid="ignore"):  # NaN and infinity, which differ from what they become
            values = exact.astype(np.int64)
        if (values != exact).any():
            raise Failure(f"{path} has values that are no whole numbers")
        if values.min() < 0 or values.max() > MAX_VALUE:
            raise Failure(f"{path} has values from {values.min()} to {values.max()}: 0 to {MAX_VALUE} are possible")
        return Decoded(values.astype(np.uint16), False, kind)
    if image.mode in ("L", "1", "LA") or (image.mode in ("P", "PA") and not by_colour):
        grey = np.asarray(image.getchannel(0) if image.mode in ("LA", "PA") else image).astype(np.uint8)
        return Decoded(grey.astype(np.uint32) * 0x010101, True, kind) if by_colour else Decoded(grey, False, kind)
    try:
        rgb = np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise Failure(f"{path}: pixel format {image.mode} is not understood ({error})") from None
    if not by_colour and (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all():
        return Decoded(np.ascontiguousarray(rgb[..., 0]), False, kind)  # grey, saved as RGB
    wide = rgb.astype(np.uint32)
    return Decoded(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], True, kind)


@lru_cache(maxsize=4)
def index_table(rules: LabelRules) -> np.ndarray:
    """Class index by value or by 0xrrggbb, UNKNOWN for all others: 64 KB or 16 MB."""
    table = np.full(1 << 24 if rules.by_colour else MAX_VALUE + 1, UNKNOWN, np.uint8)
    for value, index in rules.indices().items():
        table[value] = index
    return table


def _fault_of(decoded: Decoded, is_unknown: np.ndarray, rules: LabelRules, picture: np.ndarray) -> str:
    """The kind of fault that a mask has; empty if all is well."""
    has_unknown = bool(is_unknown.any())
    if not has_unknown:
        return "interpolated" if len(rules.classes) > 2 and not rules.by_colour and _is_interpolated(decoded) else ""
    if _is_swapped(decoded.values, picture):
        return "swapped"
    if decoded.format == "JPEG" or _is_near(decoded, is_unknown, rules):
        return "lossy"
    return "interpolated" if _is_interpolated(decoded) else "unknown_value"


def _is_interpolated(decoded: Decoded) -> bool:
    """Whether the rows change their value by steps in between, as after bilinear resizing."""
    values = decoded.values.astype(np.int32)
    if decoded.is_colour:
        values = (values >> 16) + (values >> 8 & 255) + (values & 255)
    left, middle, right = values[:, :-2], values[:, 1:-1], values[:, 2:]
    num_edges = int((left != right).sum())
    num_steps = int((((left < middle) & (middle < right)) | ((left > middle) & (middle > right))).sum())
    return num_edges >= MIN_EDGES and num_steps > MAX_STEPS * num_edges


def _is_swapped(values: np.ndarray, picture: np.ndarray) -> bool:
    wide = picture[::SAMPLED, ::SAMPLED].astype(np.uint32)
    colours = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    is_photo = len(np.unique(values[::SAMPLED, ::SAMPLED])) >= PHOTO_COLOURS
    return is_photo and len(np.unique(colours)) <= MASK_COLOURS


def _is_near(decoded: Decoded, is_unknown: np.ndarray, rules: LabelRules) -> bool:
    """Whether most pixels of no class are nearly one, where the classes lie far enough apart to tell."""
    own = _channels(np.array(sorted(rules.indices()), np.uint32), decoded.is_colour)
    if not decoded.is_colour and len(own) > 1 and np.diff(own[:, 0]).min() < MIN_SPACING:
        return False
    values, counts = np.unique(decoded.values[is_unknown], return_counts=True)
    distances, _ = _distances(_channels(values, decoded.is_colour), own)
    return bool(counts[distances <= NEAR].sum() >= MOSTLY * counts.sum())


def _nearest(decoded: Decoded, is_unknown: np.ndarray, rules: LabelRules) -> np.ndarray:
    """(N,) uint8: the index of the class whose value is nearest, for each unknown pixel."""
    known = {value: index for value, index in sorted(rules.indices().items()) if index != IGNORE_VALUE}
    own = _channels(np.array(list(known), np.uint32), decoded.is_colour)
    values, inverse = np.unique(decoded.values[is_unknown], return_inverse=True)
    _, nearest = _distances(_channels(values, decoded.is_colour), own)
    indices: np.ndarray = np.array(list(known.values()), np.uint8)[nearest][inverse]
    return indices


def _channels(values: np.ndarray, is_colour: bool) -> np.ndarray:
    """(N, 3) of colours, (N, 1) of values, int64."""
    wide = values.astype(np.int64)
    return np.stack([wide >> 16, wide >> 8 & 255, wide & 255], axis=-1) if is_colour else wide[:, None]


def _distances(values: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) distance of each value to the nearest of `own`, by its largest channel, and which that is."""
    best = np.full(len(values), np.iinfo(np.int64).max)
    which = np.zeros(len(values), np.int64)
    for number, one in enumerate(own):  # as many as classes: a matrix of all pairs could be large
        distance = np.abs(values - one).max(-1)
        is_nearer = distance < best
        best[is_nearer], which[is_nearer] = distance[is_nearer], number
    return best, which


def _count_unknown(decoded: Decoded, is_unknown: np.ndarray) -> dict[str, int]:
    """The most frequent values of no class, as text."""
    values, counts = np.unique(decoded.values[is_unknown], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_UNKNOWN]
    return {f"#{values[i]:06x}" if decoded.is_colour else str(values[i]): int(counts[i]) for i in order}


def _read_layers(
    source: MaskSource, rules: LabelRules, picture: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Indices of one file per class, in which every value but 0 is the class; later classes lie on top."""
    indices = np.full(picture.shape[:2], rules.rest, np.uint8)
    covered = np.zeros(picture.shape[:2], bool)
    faults: list[tuple[str, str]] = []
    num_overlapping = 0
    for index, path in sorted((index or 0, path) for index, path in source.files):
        decoded = decode_mask(path, by_colour=False)
        if decoded.values.shape != covered.shape:
            raise _problem(source, "size_differs", _size_words(path, decoded.values, picture))
        if decoded.is_colour:
            raise _problem(source, "colours_or_values", f"{path} has colours, and a mask of one class has two values")
        layer, layer_faults = _to_indices(source, path, decoded, _binary(int(decoded.values.max())), picture)
        faults += layer_faults
        num_overlapping += int((covered & (layer == 1)).sum())
        covered |= layer == 1
        indices[layer == 1] = index
    if num_overlapping:
        faults.append(("overlap", f"{source.name}: {num_overlapping:,} pixels are in two classes"))
    return indices, faults


def _binary(highest: int) -> LabelRules:
    """The rules of a file of one class: 0, and its highest value."""
    off, on = (ClassRule(name, values, (), (0, 0, 0)) for name, values in (("off", (0,)), ("on", (highest or 1,))))
    return LabelRules("", "", (off, on))
