"""Index webdataset shards that somebody else made: petseg then reads them in place. The tars are not changed.

Each sample needs a JPEG and a mask (8-bit grey PNG) that stand together in one tar; its name up to the first dot, less
the folders, becomes its key. What webdataset would silently drop or cut in halves is an error here, and so is a
tar without a sample. Files that belong to no picture and no mask are left out and named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shards.command import Failure
from shards.foreign.scan import LeftOut, Named, Scanned, scan_tar
from shards.index import index_name, save_index
from shards.layout import Layout, foreign_layout
from shards.manifest import (
    MANIFEST_NAME,
    SHARD_NAME,
    SPLITS,
    THREE_VALUES,
    Manifest,
    Shard,
    Source,
    load_manifest,
    save_manifest,
    split_of_keys,
)
from shards.packing.plan import MAX_NAMED_PROBLEMS
from shards.pool import ordered_map
from shards.terminal import progress

SOURCE_NAME = "foreign"
ATTRIBUTION = "packed elsewhere, indexed by `python -m shards.verify --index`: ask whoever packed it"
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
               "test": "test", "testing": "test"}  # fmt: skip
COMPRESSED = ("*.tar.*", "*.tgz", "*.tbz*", "*.txz", "*.tzst")


@dataclass(frozen=True)
class ForeignConfig:
    """How to read somebody else's shards."""

    image_suffix: str = "jpg"
    mask_suffix: str = "png"
    values: dict[str, int] = field(default_factory=lambda: dict(THREE_VALUES))
    split: str | None = None  # of all shards; by default each shard's name says it

    def __post_init__(self) -> None:
        for flag, suffix in (("image", self.image_suffix), ("mask", self.mask_suffix)):
            if not suffix or suffix != suffix.lower() or suffix.startswith(".") or "/" in suffix:
                raise ValueError(
                    f"--{flag}-suffix {suffix!r}: what follows the key's dot, in small letters, as seg.png"
                )
        if self.image_suffix == self.mask_suffix:
            raise ValueError(f"--image-suffix and --mask-suffix are both {self.mask_suffix!r}")
        values = set(self.values.values())
        if set(self.values) != set(THREE_VALUES) or len(values) != 3 or not all(0 <= value <= 255 for value in values):
            given = " ".join(f"--trimap.{name} {value}" for name, value in self.values.items())
            raise ValueError(
                f"{given}: three different values from 0 to 255 are needed, as in --trimap.background 0 "
                "--trimap.border 255; a label that the masks do not have takes a value that does not occur"
            )

    def layout(self) -> Layout:
        return foreign_layout(self.image_suffix, self.mask_suffix, {name: self.values[name] for name in THREE_VALUES})

    def packer(self) -> dict[str, Any]:
        return {"foreign": True, "image_suffix": self.image_suffix, "mask_suffix": self.mask_suffix}


@dataclass(frozen=True)
class Indexed:
    """The set that is in place now, and what of its tars is not in it."""

    manifest: Manifest
    left_out: LeftOut


def index_folder(folder: Path, config: ForeignConfig, *, num_workers: int = 1) -> Indexed:
    """Write an index beside each tar of `folder`, and manifest.json; nothing is written unless all samples are good.

    Raises ValueError for wrong use (a packed set is there, compressed tars, names without a split), Failure that names
    shard and sample for what cannot be trained on.
    """
    old = _foreign_manifest(folder)
    paths = _tars(folder)
    splits = {path.name: config.split or _split_of_name(path) for path in paths}
    paths.sort(key=lambda path: (SPLITS.index(splits[path.name]), path.name))
    scanned = []
    with progress("read", len(paths)) as advance:
        for one in ordered_map(partial(scan_tar, layout=config.layout()), paths, num_workers=num_workers):
            scanned.append(one)
            advance(1)
    if (problems := sum((one.problems for one in scanned), _keys_twice(scanned))).count:
        lines = "\n  ".join(problems.lines(MAX_NAMED_PROBLEMS))
        raise Failure(f"{folder} cannot be indexed, {problems.count:,} problems:\n  {lines}")
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # there is never one without its indices
    shards = tuple(_save_index(one, splits[one.name], folder) for one in scanned)
    for shard in old.shards if old else ():
        if shard.name not in splits:
            (folder / index_name(shard.name)).unlink(missing_ok=True)
    keys = {split: [s.key for one in scanned if splits[one.name] == split for s in one.samples] for split in SPLITS}
    manifest = Manifest(
        source=Source(SOURCE_NAME, ATTRIBUTION, dict(config.layout().mask_values)),
        packer=config.packer(),
        splits={split: split_of_keys(keys[split]) for split in SPLITS if keys[split]},
        shards=shards,
    )
    return Indexed(save_manifest(manifest, folder), sum((one.left_out for one in scanned), LeftOut()))


def _foreign_manifest(folder: Path) -> Manifest | None:
    """The manifest of an earlier --index; raises ValueError for one of a packed set, or one that nobody can read."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        manifest = load_manifest(folder)
    except ValueError as error:
        raise ValueError(f"{error}; or, if the shards were packed elsewhere, remove {path} and index again") from None
    if not manifest.packer.get("foreign"):
        raise ValueError(f"{folder} holds a set packed by petseg: it has its index, check it without --index")
    return manifest


def _tars(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder.absolute()} is not a folder: name the one with the .tar files")
    if compressed := sorted(path.name for pattern in COMPRESSED for path in folder.glob(pattern)):
        raise ValueError(
            f"{folder / compressed[0]} is compressed ({len(compressed)} such files): petseg reads by byte offset; "
            "uncompress it, as with gunzip, and index again"
        )
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise ValueError(f"{folder} has no .tar files to index")
    if odd := [path.name for path in paths if not SHARD_NAME.fullmatch(path.name)]:
        raise ValueError(f"{folder / odd[0]}: a shard's name must match {SHARD_NAME.pattern}: rename or remove it")
    return paths


def _split_of_name(path: Path) -> str:
    word = re.match(r"[a-z]*", path.name.lower())
    assert word is not None
    if word[0] not in SPLIT_WORDS:
        raise ValueError(
            f"{path}: the name does not tell its split: rename it to train-..., val-... or test-..., or put all "
            "shards of the folder into one split, as with --split train"
        )
    return SPLIT_WORDS[word[0]]


def _keys_twice(scanned: Sequence[Scanned]) -> Named:
    """Samples of one key, in one shard or in two: petseg's keys are without the folders of webdataset's."""
    seen: dict[str, str] = {}
    problems = Named()
    for one in scanned:
        for sample, prefix in zip(one.samples, one.prefixes, strict=True):
            place = f"{prefix} in {one.name}"
            if sample.key in seen:
                problems.add(f"key {sample.key} is there twice: {seen[sample.key]} and {place}")
            seen.setdefault(sample.key, place)
    return problems


def _save_index(one: Scanned, split: str, folder: Path) -> Shard:
    return Shard(
        name=one.name,
        split=split,
        num_samples=len(one.samples),
        num_bytes=one.num_bytes,
        sha256=one.sha256,
        index_sha256=save_index(one.samples, folder, one.name),
    )
