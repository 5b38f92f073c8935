"""Single runs (petseg/train.py) of one folder, such as runs/single, seen as a sweep: reported and compared, not run.

They have no sweep.json and no jobs. Their axes are the fields in which they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.design.shard_sets import SHARDS, ShardSet
from jobs.runs.sweep_file import find_sweep, load_sweep
from jobs.runs.trial import SWEEP_NAME, TRIALS_NAME, Sweep, Trial
from petseg.config.values import flatten
from petseg.run_folder.layout import CONFIG_NAME, load_config
from shards.command import typed, without_secrets

HASH = "manifest_hash"
PREDICTION_NAME = "predict.json"


def find_runs(name: str, runs_dir: Path) -> Sweep:
    """The sweep of that name or in that folder, or the single runs that lie there. Raises ValueError for neither."""
    candidates = (Path(name), runs_dir / name)
    for folder in candidates:
        if (folder / SWEEP_NAME).exists():
            return load_sweep(folder)
    for folder in candidates:
        _require_no_prediction(folder)
        if folders := _run_folders(folder):
            return read_single_runs(folder, folders)
        _require_no_trial(folder)
        if (folder / CONFIG_NAME).exists():
            raise ValueError(f"{folder} is one run: name the folder that it lies in, {folder.parent}, to see all there")
    return load_sweep(runs_dir / name)


def find_sweep_with_jobs(name: str, runs_dir: Path, instead: str) -> Sweep:
    """The sweep of that name or in that folder, for a command that acts on its jobs. Raises ValueError for single runs.

    instead: what does for single runs what the command does for a sweep
    """
    candidates = (Path(name), runs_dir / name)
    if not any((folder / SWEEP_NAME).exists() for folder in candidates):
        for folder in candidates:
            _require_no_prediction(folder)
            _require_no_trial(folder)
            one = (folder / CONFIG_NAME).exists()
            if one or _run_folders(folder):
                look = typed("jobs/status.py", folder.parent if one else folder)
                what = "is a run" if one else "holds runs"
                raise ValueError(f"{folder} {what} of petseg/train.py, not a sweep: {instead}; see also `{look}`")
    return find_sweep(name, runs_dir)


def _require_no_prediction(folder: Path) -> None:
    """Raises ValueError, with what does it there, for a folder of jobs/predict.py, whose parts are no trials."""
    from jobs.runs.parts import JOBS_NAME, PARTS_NAME, load_parts  # reads pictures, which takes a while to import

    for out in (folder, folder.parent):
        if (out / JOBS_NAME / PARTS_NAME).is_dir() and (out / PREDICTION_NAME).exists():
            raise ValueError(
                f"{out} holds a prediction, not a sweep: run the command of jobs/predict.py that began it again to see "
                "how far it is and why parts failed, and to submit what is missing; the logs lie in "
                f"{out / JOBS_NAME / 'logs'}, and "
                f"`scancel --me --name petseg-{load_parts(out).name}` ends its jobs"
            )


def _run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))


def _require_no_trial(folder: Path) -> None:
    """Raises ValueError for the folder of a sweep's trial, or of its trials."""
    for trials in (folder, folder.parent):
        if trials.name == TRIALS_NAME and (trials.parent / SWEEP_NAME).exists():
            raise ValueError(f"{folder} lies in the sweep {trials.parent}: name that")


def read_single_runs(parent: Path, folders: Sequence[Path]) -> Sweep:
    """The runs in these folders as trials of a sweep by that place's name; what is no run is left out."""
    contents = {folder: content for folder in folders if (content := _content(folder))}
    if not contents:
        raise ValueError(f"no run in {parent.absolute()} can be read: each {CONFIG_NAME} there is damaged")
    values = {folder: flatten(content["identity"]) for folder, content in contents.items()}
    hashes = {folder: str(identity.pop(HASH)) for folder, identity in values.items()}
    sets = {hashes[folder]: _shard_set(hashes[folder], content) for folder, content in contents.items()}
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
    return Sweep(parent, parent.name, axes, first.hash, first.location, trials, shard_sets=tuple(sets.values()))


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
    values_of = {name: list(dict.fromkeys(one[name] for one in values if name in one)) for name in names}
    return {name: seen for name, seen in values_of.items() if len(seen) > 1 or any(name not in one for one in values)}
