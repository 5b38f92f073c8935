"""Near-identical pictures that lie in two splits of a shard set.

python -m shards.duplicates data/shards
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from shards.command import OK, run_command
from shards.command.flags import parse
from shards.manifest import load_manifest
from shards.near_duplicates.note import NearDuplicates, load_near_duplicates, save_near_duplicates
from shards.near_duplicates.picture_hash import find_duplicates, hash_set
from shards.pool import default_workers


@dataclass(frozen=True)
class DuplicatesConfig:
    """Name the near-identical pictures that lie in two splits of a shard set, and note them beside its shards.

    Sets that this petseg packed have the note already; others are read for it once. The shards are not changed.
    """

    folder: Path
    """Folder of the shard set."""
    anew: bool = False
    """Read the pictures even if the set has the note."""
    workers: int = 0
    """Processes; 0 means one per core."""
    show: int = 50
    """Pairs that are listed; the rest is counted."""


def look(config: DuplicatesConfig) -> NearDuplicates:
    """The note of a set, written first if it has none."""
    manifest = load_manifest(config.folder)
    known = None if config.anew else load_near_duplicates(config.folder, manifest.hash)
    if known:
        return known
    hashes = hash_set(config.folder, manifest, config.workers or default_workers())
    found = find_duplicates(hashes, manifest.hash)
    save_near_duplicates(found, config.folder)
    return found


def main(argv: Sequence[str]) -> int:
    from shards.terminal import Terminal

    config = parse(DuplicatesConfig, argv, __doc__, positional=True)
    found = look(config)
    console = Terminal(soft_wrap=True, highlight=False)
    for pair in found.pairs[: max(0, config.show)]:
        console.print(f"{pair.split}/{pair.key}  {pair.other_split}/{pair.other}  {pair.distance} bits differ")
    more = found.total - min(found.total, max(0, config.show))
    if more:
        console.print(f"and {more:,} more")
    console.print(found.summary)
    if found.total:
        console.print("`python -m shards.pack ... --drop-duplicates` keeps those of val and test out of train")
    return OK


if __name__ == "__main__":
    sys.exit(run_command(main))
