"""The contract of a shard set: manifest.json, and one byte-offset index beside each shard (shards.index).

A shard set is a folder with manifest.json and, per shard, `NAME.tar` and `NAME.index.json`. Each sample is three
adjacent tar members `KEY.jpg` (picture), `KEY.png` (8-bit grey mask) and `KEY.json` (facts of the sample). Keys match
`[A-Za-z0-9_-]+`, because webdataset splits a member's name at its first dot.

Format version 1 has masks of three labels, with the values of `Source.values`. Version 2 has a class table instead
(`classes`): its masks hold 0 to K - 1, and 255 for pixels to ignore.

Shards made elsewhere can be indexed in place (shards.foreign.index; `packer.foreign` is true). Their members are named
otherwise, and may lack the facts: `NO_MEMBER` of shards.index stands for them.

This module is pure standard library, so that a login node reads a manifest in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from shards.absent import describe_absence
from shards.cause import ShardSetError
from shards.classes import ClassTable, table_of_json
from shards.files import NotRegular, decode_json, read_regular, write_whole

FORMAT_VERSION = 1  # of sets without a class table
CLASSES_VERSION = 2  # of sets with a class table
MANIFEST_NAME = "manifest.json"
DROPPED = "duplicates_dropped"  # of Manifest.packer: keys of listed samples that are not in the set
SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")  # one component of a path, and it can stand in any address
THREE_VALUES = {"pet": 1, "background": 2, "border": 3}  # of masks without a class table, by their names on disk
VALUES_KEY = "trimap"  # what manifest.json calls them


@dataclass(frozen=True)
class Source:
    """Where the samples come from, and what the values of their masks mean unless a class table says it."""

    name: str
    attribution: str
    values: dict[str, int] = field(default_factory=lambda: dict(THREE_VALUES))


@dataclass(frozen=True)
class Shard:
    """One tar file of the set."""

    name: str  # file name, such as train-000003.tar
    split: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str  # of the index beside it: offsets and checksums that name a damaged sample must be trusted


@dataclass(frozen=True)
class Split:
    """How many samples a split has, and the XOR of their key hashes as 16 hex digits: proof of an exact epoch."""

    num_samples: int
    key_xor: str


@dataclass(frozen=True)
class Manifest:
    """A shard set. `hash` covers everything else, including the sha256 of the shards."""

    source: Source
    packer: dict[str, Any]
    splits: dict[str, Split]
    shards: tuple[Shard, ...]
    format_version: int = FORMAT_VERSION
    hash: str = ""
    classes: ClassTable | None = None  # None in format version 1

    @property
    def mask_values(self) -> dict[str, int]:
        """What the values of a mask mean, by name."""
        return self.classes.values if self.classes else self.source.values

    @property
    def counts(self) -> str:
        """How many samples each split has, in words."""
        return ", ".join(f"{split.num_samples:,} {name}" for name, split in self.splits.items()) or "none at all"

    def require_samples(self, splits: Iterable[str], location: str) -> None:
        """Raises ValueError that names the set, at `location`, and its first split without samples."""
        for name in splits:
            if name not in self.splits or not self.splits[name].num_samples:
                raise ValueError(
                    f"{location} has no samples in its split {name!r} (samples: {self.counts}): choose another set "
                    "with data.shards, or make it anew with samples in that split: by `python -m shards.pack`, or for "
                    "shards that were packed elsewhere by names that begin with their split and `python -m "
                    "shards.verify --index`"
                )

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """The shards of one split, in order of their names."""
        if split not in self.splits:
            raise ValueError(f"the shard set has no split {split!r}; it has {self.counts}")
        return tuple(shard for shard in self.shards if shard.split == split)


def is_grouped(manifest: Manifest) -> bool:
    """Whether the set was packed with --group-by, which keeps a video's frames or a patient's slices in one split."""
    origins = (manifest.packer.get(origin) for origin in ("pairs", "coco"))
    return any(isinstance(origin, dict) and bool(origin.get("group_by")) for origin in origins)


def key_hash(key: str) -> int:
    """64-bit hash of a sample's key, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def split_of_keys(keys: Iterable[str]) -> Split:
    """Count and XOR of the key hashes: equal for every order of the same keys."""
    count, xor = 0, 0
    for key in keys:
        count, xor = count + 1, xor ^ key_hash(key)
    return Split(count, f"{xor:016x}")


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:06d}.tar"


def manifest_hash(manifest: Manifest) -> str:
    """sha256 of the manifest's canonical JSON without the hash itself."""
    content = _content_of(replace(manifest, hash=""))
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _content_of(manifest: Manifest) -> dict[str, Any]:
    """What manifest.json holds: three values or a class table, and never both."""
    content = asdict(manifest)
    values = content["source"].pop("values")
    if manifest.classes is None:
        del content["classes"]
        content["source"][VALUES_KEY] = values
    return content


def with_hash(manifest: Manifest) -> Manifest:
    """Return the manifest with its hash filled in."""
    return replace(manifest, hash=manifest_hash(manifest))


def save_manifest(manifest: Manifest, folder: Path) -> Manifest:
    """Write manifest.json with its hash filled in, and return that manifest."""
    manifest = with_hash(manifest)
    write_whole(folder / MANIFEST_NAME, json.dumps(_content_of(manifest), indent=2) + "\n")
    return manifest


def load_manifest(folder: Path | str) -> Manifest:
    """Read and check manifest.json.

    Raises ShardSetError if there is none, if it is damaged, if its format version is not ours, or if it names a shard
    by anything but a plain file name: whoever opens a shard joins its name to the folder.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        content = decode_json(read_regular(path, follow=False).decode())
    except (FileNotFoundError, NotADirectoryError):
        raise ShardSetError(describe_absence(Path(folder), MANIFEST_NAME)) from None
    except NotRegular as error:
        raise ShardSetError(f"{error}: a shard set's files lie in its folder; put the file itself there") from None
    except ValueError as error:
        raise ShardSetError(f"{path} is damaged ({error}): pack the set again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in (FORMAT_VERSION, CLASSES_VERSION):
        known = f"{FORMAT_VERSION} and {CLASSES_VERSION}"
        raise ShardSetError(f"{path} has format version {version!r}, this petseg reads {known}: pack it again")
    try:
        manifest = _parse(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardSetError(f"{path} is damaged ({error!r}): pack the set again") from None
    except ValueError as error:
        raise ShardSetError(f"{path} cannot be used ({error}): pack the set again") from None
    if problem := _problem_of(manifest):
        raise ShardSetError(f"{path} cannot be used ({problem}): pack the set again")
    if manifest.hash != manifest_hash(manifest):
        raise ShardSetError(f"{path} was altered: its content does not match its hash; pack the set again")
    return manifest


def _parse(content: dict[str, Any]) -> Manifest:
    """Raises ValueError, KeyError, TypeError or AttributeError for content that is no manifest."""
    classes = table_of_json(content["classes"]) if content["format_version"] == CLASSES_VERSION else None
    return Manifest(
        source=_parse_source({**content["source"]}, has_table=classes is not None),
        packer=content["packer"],
        splits={name: Split(**split) for name, split in content["splits"].items()},
        shards=tuple(Shard(**shard) for shard in content["shards"]),
        format_version=content["format_version"],
        hash=content["hash"],
        classes=classes,
    )


def _parse_source(content: dict[str, Any], has_table: bool) -> Source:
    values = {} if has_table else content.pop(VALUES_KEY, dict(THREE_VALUES))
    return Source(**content, values=values)


def _problem_of(manifest: Manifest) -> str:
    """Say what makes a manifest unusable or unsafe to read; empty if nothing does."""
    names = Counter(shard.name if isinstance(shard.name, str) else "" for shard in manifest.shards)
    for name, count in names.items():
        if not SHARD_NAME.fullmatch(name):
            return f"a shard is named {name!r}: a shard's name must match {SHARD_NAME.pattern}"
        if count > 1:
            return f"{count} shards are named {name}"
    entries: list[Any] = [*manifest.shards, *manifest.splits.values(), manifest.source]
    for part, value in ((part, getattr(entry, part.name)) for entry in entries for part in fields(entry)):
        if (part.type == "str" and type(value) is not str) or (
            part.type == "int" and (type(value) is not int or value < 0)
        ):
            return f"{part.name} is {value!r}"
    if odd := [name for name in manifest.splits if name not in SPLITS]:
        return f"a split is named {odd[0]!r}: they are {', '.join(SPLITS)}"
    in_shards: Counter[str] = Counter()
    for shard in manifest.shards:
        in_shards[shard.split] += shard.num_samples
    for name in sorted({*manifest.splits, *in_shards}):
        samples = manifest.splits[name].num_samples if name in manifest.splits else 0
        if samples != in_shards[name]:
            return f"its split {name!r} has {samples} samples, and the shards of that split {in_shards[name]}"
    values: Any = manifest.source.values
    if manifest.classes is None and (
        not isinstance(values, dict) or set(values) != set(THREE_VALUES) or {type(v) for v in values.values()} != {int}
    ):
        return f"its {VALUES_KEY} values are {values!r}"
    return "" if isinstance(manifest.packer, dict) else f"packer is {manifest.packer!r}"
