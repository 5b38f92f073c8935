"""The shard sets of a sweep: the manifest that each cell's identity needs, and what the sweep's folder notes of it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.design.expansion import Cell
from jobs.design.spec import Spec
from petseg.config import RunConfig
from petseg.config.values import trial_id
from petseg.data.consent import require_known
from petseg.data.store import folder_of, is_remote, read_manifest
from shards.command import without_secrets
from shards.manifest import Manifest
from shards.near_duplicates.note import load_near_duplicates

SHARDS = "data.shards"  # may be an axis although it is no part of the identity: the set's hash is

SYNTHETIC = "synthetic"  # what the source's name of drawn pictures begins with


@dataclass(frozen=True)
class ShardSet:
    """What sweep.json records of a shard set, so that a report does not need the set itself."""

    hash: str
    location: str  # as data.shards names it, without passwords and queries
    source: str = ""  # "" in a sweep.json of an earlier version, which noted the hash and the location only
    attribution: str = ""
    num_samples: dict[str, int] = field(default_factory=dict)  # by split
    near_duplicates: dict[str, int] | None = None  # pairs by the two splits; None where nobody has looked
    num_classes: int = 0  # of its class table; 0 in a set without one

    @property
    def is_synthetic(self) -> bool:
        """Drawn by `shards.pack --synthetic`, not photographed."""
        return self.source.startswith(SYNTHETIC)

    @classmethod
    def of(cls, manifest: Manifest, location: str) -> ShardSet:
        num_samples = {name: split.num_samples for name, split in manifest.splits.items()}
        source, known = manifest.source, None
        if not is_remote(location):
            with suppress(ValueError, OSError):  # damaged: the doctor says so
                known = load_near_duplicates(folder_of(location), manifest.hash)
        counts = known.counts if known else None
        num_classes = len(manifest.classes) if manifest.classes else 0
        location = without_secrets(location)
        return cls(manifest.hash, location, source.name, source.attribution, num_samples, counts, num_classes)

    def content(self) -> dict[str, Any]:
        """What sweep.json holds of it: what earlier versions do not know is left out where it says nothing."""
        content = asdict(self)
        if not self.num_classes:
            del content["num_classes"]
        return content


@dataclass(frozen=True)
class ShardSets:
    """The manifests of the sets that a sweep's cells train on, by `data.shards`, in the order of the cells."""

    manifests: Mapping[str, Manifest]

    def of(self, config: RunConfig) -> Manifest:
        """The manifest of the set that a cell's config names; raises ValueError if that set was not read."""
        location = config.data.shards
        if location not in self.manifests:
            known = ", ".join(without_secrets(one) for one in self.manifests)
            raise ValueError(
                f"{SHARDS} = {without_secrets(location)!r}: this set's manifest was not read; choose one of {known}"
            )
        return self.manifests[location]

    @property
    def first(self) -> tuple[str, Manifest]:
        """(location, manifest) of the first cell's set."""
        return next(iter(self.manifests.items()))

    @property
    def notes(self) -> tuple[ShardSet, ...]:
        return tuple(ShardSet.of(manifest, location) for location, manifest in self.manifests.items())

    def trial_id(self, config: RunConfig) -> str:
        return trial_id(config, self.of(config).hash)

    def by_id(self, cells: Iterable[Cell]) -> dict[str, Cell]:
        """The cells by trial id; raises ValueError if cells with different axis values are the same trial."""
        cells_by_id: dict[str, Cell] = {}
        for cell in cells:
            identifier = self.trial_id(cell.config)
            other = cells_by_id.setdefault(identifier, cell)
            if other.axes != cell.axes:
                raise ValueError(
                    f"{_differences(other.axes, cell.axes)} give the same trial ({identifier}), whose numbers would "
                    "stand for both: leave one of them out"
                )
        return cells_by_id


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """`model.weights = 'a.pt' and 'b.pt'`"""
    names = [name for name in one if one[name] != other.get(name)]
    return ", ".join(f"{name} = {one[name]!r} and {other.get(name)!r}" for name in names)


def typed_locations(spec: Spec, settings: Sequence[str]) -> set[str]:
    """The shard sets that --set and --axis name, rather than the sweep file."""
    if not any(word.startswith(f"{SHARDS}=") for word in settings):
        return set()
    drawn = spec.space[SHARDS].values if SHARDS in spec.space else ()
    return {str(one) for one in (spec.fixed.get(SHARDS), *spec.axes.get(SHARDS, ()), *drawn)}


def require_known_sets(cells: Iterable[Cell], typed: Container[str], source: Path) -> None:
    """Raises ValueError for a set that would be fetched, or read by a command, and is named by the sweep file alone.

    For commands that only look: a sweep file can be a stranger's until its sweep is submitted.
    """
    for location in {cell.config.data.shards: None for cell in cells}:
        if location not in typed:
            require_known(location, str(source), f"name them by --set {SHARDS}=..., or ")


def read_shard_sets(cells: Iterable[Cell]) -> ShardSets:
    """Read the manifest of each set that the cells name.

    Raises ValueError if two names hold the same set, if one has nothing to train or to validate on, and as
    `read_manifest`.
    """
    manifests: dict[str, Manifest] = {}
    for data in (cell.config.data for cell in cells):
        if data.shards in manifests:
            continue
        manifest = read_manifest(data.shards, data.cache_dir, data.cache_gb)
        manifest.require_samples(("train", "val"), without_secrets(data.shards))
        for location, other in manifests.items():
            if other.hash == manifest.hash:
                names = f"{without_secrets(location)} and {without_secrets(data.shards)}"
                raise ValueError(
                    f"{SHARDS}: {names} hold the same shard set ({manifest.hash[:10]}), so their cells would be the "
                    "same trials: leave one of them out"
                )
        manifests[data.shards] = manifest
    return ShardSets(manifests)
