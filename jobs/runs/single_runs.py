"""Single runs (petseg/train.py) of one folder, such as runs/single, seen as a sweep: reported and compared, not run.

They have no sweep.json and no jobs. Their axes are the fields in which they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.design.shard_sets import SHARDS, ShardSet
from jobs.runs.trial import SWEEP_NAME, Sweep, Trial, load_sweep
from petseg.config.values import flatten
from petseg.data.places import without_secrets
from petseg.run_folder.layout import CONFIG_NAME, load_config

HASH = "manifest_hash"


def find_runs(name: str, runs_dir: Path) -> Sweep:
    """The sweep of that name or in that folder, or the single runs that lie there. Raises ValueError for neither."""
    places = (Path(name), runs_dir / name)
    for place in places:
        if (place / SWEEP_NAME).exists():
            return load_sweep(place)
    for place in places:
        if folders := sorted(path.parent for path in place.glob(f"*/{CONFIG_NAME}")):
            return read_single_runs(place, folders)
        if (place / CONFIG_NAME).exists():
            raise ValueError(f"{place} is one run: name the folder that it lies in, {place.parent}, to see all there")
    return load_sweep(runs_dir / name)


def read_single_runs(place: Path, folders: Sequence[Path]) -> Sweep:
    """The runs in these folders as trials of a sweep by that place's name; what is no run is left out."""
    found = {folder: content for folder in folders if (content := _content(folder))}
    if not found:
        raise ValueError(f"no run in {place.absolute()} can be read: each {CONFIG_NAME} there is damaged")
    values = {folder: flatten(content["identity"]) for folder, content in found.items()}
    hashes = {folder: str(identity.pop(HASH)) for folder, identity in values.items()}
    sets = {hashes[folder]: _shard_set(hashes[folder], content) for folder, content in found.items()}
    if len(sets) > 1:
        for folder, identity in values.items():
            identity[SHARDS] = sets[hashes[folder]].location
    axes = _differing(list(values.values()))
    first = next(iter(sets.values()))
    trials = tuple(
        Trial(
            folder.name,
            {name: identity[name] for name in axes if name in identity},
            folder,
            "" if hashes[folder] == first.hash else hashes[folder],
        )
        for folder, identity in values.items()
    )
    return Sweep(place, place.name, axes, first.hash, first.location, trials, shard_sets=tuple(sets.values()))


def _content(folder: Path) -> dict[str, Any] | None:
    """config.json of a run, None if it is damaged."""
    try:
        content = load_config(folder)
        return content if content["identity"][HASH] and content["config"]["data"]["shards"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _shard_set(manifest_hash: str, content: dict[str, Any]) -> ShardSet:
    return ShardSet(manifest_hash, without_secrets(str(content["config"]["data"]["shards"])))


def _differing(values: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The fields that have more than one value, or that some runs lack, with their values."""
    names = dict.fromkeys(name for one in values for name in one)
    found = {name: list(dict.fromkeys(one[name] for one in values if name in one)) for name in names}
    return {name: seen for name, seen in found.items() if len(seen) > 1 or any(name not in one for one in values)}
