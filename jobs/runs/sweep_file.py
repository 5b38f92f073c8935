"""sweep.json: what a sweep is, with its axes, its shard sets and its trials in order; written, read and found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.design.early_terminate import hyperband_entry, parse_hyperband
from jobs.design.shard_sets import ShardSet
from jobs.runs.trial import CHAIN_NOTES, SWEEP_NAME, TRIAL_ID, TRIALS_NAME, Sweep, Trial
from shards.command import typed
from shards.files import NotRegular, build, read_json_object, require_own_folder, write_whole

FORMAT_VERSION = 1
WRITTEN_ANEW = "delete it and run the same sweep again, which writes it anew and keeps the trials"


def save_sweep(sweep: Sweep) -> None:
    sweep.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format_version": FORMAT_VERSION,
        "name": sweep.name,
        "axes": sweep.axes,
        "manifest_hash": sweep.manifest_hash,
        "shards": sweep.shards,
        "trials": [_trial_entry(trial) for trial in sweep.trials],
        "method": sweep.method,
        **({"early_terminate": hyperband_entry(sweep.early_stopping)} if sweep.early_stopping else {}),
        **({"shard_sets": [one.content() for one in sweep.shard_sets]} if sweep.shard_sets else {}),
    }
    write_whole(sweep.folder / SWEEP_NAME, json.dumps(content, indent=2) + "\n")


def _trial_entry(trial: Trial) -> dict[str, Any]:
    of_its_own = {"manifest_hash": trial.manifest_hash} if trial.manifest_hash else {}
    return {"id": trial.id, "axes": trial.axes, **of_its_own}


def load_sweep(folder: Path) -> Sweep:
    """Read sweep.json; raises ValueError if there is none, if it is damaged, or if its format is another.

    The folder can be a stranger's: a trial is a folder of its own in `trials`, and nothing else.
    """
    path = folder / SWEEP_NAME
    try:
        content = read_json_object(path, WRITTEN_ANEW)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / CHAIN_NOTES).is_file():
            look = typed("jobs/status.py", folder)
            raise ValueError(f"no trials in {folder} yet: `{look}` says where its chain stands") from None
        raise ValueError(
            f"no sweep in {folder.absolute()}: start one with `python jobs/sweep.py`{_neighbours(folder)}"
        ) from None
    except NotRegular as error:
        raise ValueError(str(error)) from None
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format {version!r}, not {FORMAT_VERSION}: open it with the petseg that wrote it")
    try:
        return _sweep_of(folder, content)
    except (KeyError, TypeError, AttributeError, ValueError, NotRegular) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {WRITTEN_ANEW}") from None


def _sweep_of(folder: Path, content: Mapping[str, Any]) -> Sweep:
    """The sweep of a sweep.json; raises KeyError, TypeError, AttributeError or ValueError for damaged content."""
    require_own_folder(folder / TRIALS_NAME)
    noted = content.get("shard_sets") or [{"hash": content["manifest_hash"], "location": content["shards"]}]
    return Sweep(
        folder,
        _text(content["name"]),
        {name: [_value(one) for one in values] for name, values in content["axes"].items()},
        _text(content["manifest_hash"]),
        _text(content["shards"]),
        tuple(_trial_of(folder, **entry) for entry in content["trials"]),
        parse_hyperband(content["early_terminate"]) if "early_terminate" in content else None,
        _text(content.get("method", "grid")),
        tuple(build(ShardSet, one) for one in noted),
    )


def _trial_of(folder: Path, id: str, axes: dict[str, Any], manifest_hash: str = "") -> Trial:
    if not TRIAL_ID.fullmatch(id):
        raise ValueError(f"a trial has the id {id!r}: it must match {TRIAL_ID.pattern}")
    own_folder = folder / TRIALS_NAME / id
    require_own_folder(own_folder)
    return Trial(id, {name: _value(one) for name, one in axes.items()}, own_folder, _text(manifest_hash))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _value(value: Any) -> Any:
    """A value of an axis, by which trials are distinguished and sorted."""
    if not isinstance(value, str | float | bool | None) and not (type(value) is int and abs(value) < 2**63):
        raise TypeError(f"{value!r:.80} is no value of an axis")
    return value


def find_sweep(name: str, runs_dir: Path) -> Sweep:
    """The sweep of that name, or in that folder."""
    path = Path(name)
    return load_sweep(path if (path / SWEEP_NAME).exists() else runs_dir / name)


def _neighbours(folder: Path) -> str:
    names = sorted(path.parent.name for path in folder.parent.glob(f"*/{SWEEP_NAME}"))
    return f", or name one of {', '.join(names)}" if names else ""
