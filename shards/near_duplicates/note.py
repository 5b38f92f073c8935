"""The note beside a shard set of which near-identical pictures lie in two of its splits; shards.duplicates finds them.

Pure standard library, as the manifest, whose hash does not cover it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.command import typed
from shards.files import decode_json, read_regular, write_whole
from shards.index import KEY_PATTERN
from shards.manifest import FORMAT_VERSION

NEAR_DUPLICATES_NAME = "near_duplicates.json"
MAX_PAIRS_NAMED = 1_000


@dataclass(frozen=True)
class Pair:
    """Two near-identical pictures in different splits, and how many bits of their hashes differ."""

    key: str
    split: str
    other: str
    other_split: str
    distance: int


@dataclass(frozen=True)
class NearDuplicates:
    """Which pictures of a set lie, nearly the same, in two of its splits (shards.duplicates)."""

    manifest_hash: str  # of the set that was looked at
    method: str
    max_distance: int  # bits of the hash that may differ
    counts: dict[str, int]  # pairs by the two splits, such as train-test
    pairs: tuple[Pair, ...]  # the nearest MAX_PAIRS_NAMED
    hashes: Mapping[str, Mapping[str, str]]  # split -> key -> hex digits

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def summary(self) -> str:
        return summarise_duplicates(self.counts)


def summarise_duplicates(counts: Mapping[str, int]) -> str:
    """`20 near-identical pairs lie across splits (18 train-test, 2 val-test)`"""
    total = sum(counts.values())
    if not total:
        return "no near-identical pictures lie across splits"
    listed = ", ".join(f"{count:,} {splits}" for splits, count in counts.items() if count)
    return f"{total:,} near-identical pair{'s lie' if total > 1 else ' lies'} across splits ({listed})"


def save_near_duplicates(found: NearDuplicates, folder: Path) -> None:
    content = {"format_version": FORMAT_VERSION, **asdict(found)}
    write_whole(folder / NEAR_DUPLICATES_NAME, json.dumps(content, indent=0) + "\n")


def load_near_duplicates(folder: Path | str, manifest_hash: str) -> NearDuplicates | None:
    """The note beside a set; None if there is none, or one of another set. Raises ValueError if it is damaged."""
    path = Path(folder) / NEAR_DUPLICATES_NAME
    try:
        content = decode_json(read_regular(path))
        if content.pop("format_version") != FORMAT_VERSION or content["manifest_hash"] != manifest_hash:
            return None
        pairs = tuple(Pair(**pair) for pair in content["pairs"])
        counts = {splits: int(count) for splits, count in content["counts"].items()}
        hashes = {split: dict(keys) for split, keys in content["hashes"].items()}
        for name in [*counts, *hashes, *(name for p in pairs for name in (p.key, p.split, p.other, p.other_split))]:
            if not KEY_PATTERN.fullmatch(name):  # it is shown
                raise ValueError(f"{name!r} is no key")
        return NearDuplicates(**{**content, "pairs": pairs, "counts": counts, "hashes": hashes})
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        again = typed("-m", "shards.duplicates", folder)
        raise ValueError(f"{path} is damaged ({error!r}): delete it, then `{again}` writes it anew") from None
