"""What a run's folder holds, readable without torch so that status and report stay quick.

config.json (resolved, with the run's identity), overrides.json (what a machine forced on it), metrics.jsonl (a line per
epoch), result.json (written last: its presence means finished) or pruned.json (stopped early, for good unless it is
asked to go on), per_image.npz, val_masks.npz, calibration.json, overlays/, overlay_masks.npz and best_overlays/
(petseg.tracking_overlays), checkpoints/, wandb/, lives.json and heartbeat.json (petseg.lives).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from petseg.config import RunConfig
from petseg.config_values import config_to_dict, flatten, identity, trial_id
from shards.manifest import named, read_object, write_whole

CONFIG_NAME = "config.json"
OVERRIDES_NAME = "overrides.json"
METRICS_NAME = "metrics.jsonl"
RESULT_NAME = "result.json"
PRUNED_NAME = "pruned.json"
PER_IMAGE_NAME = "per_image.npz"
CALIBRATION_NAME = "calibration.json"
VAL_MASKS_NAME = "val_masks.npz"
OVERLAYS_NAME = "overlays"
CHECKPOINTS_NAME = "checkpoints"

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Result:
    """What a finished run has to say."""

    trial_id: str
    metrics: dict[str, float]  # of the best weights: val/*, test/* if measured, and */all_pet_dice
    best_epoch: int
    epochs: int
    parameters: int
    world_size: int
    host: str
    device: str
    train_s: float  # of the run's last life
    images_per_s: float  # median over that life's epochs
    data_wait: float  # median share of the time in which a step waited for data
    headroom: float  # median images/s that the same steps would reach if data cost nothing
    mfu: float | None = None  # median model FLOPs utilization; None where the device's best is not known
    peak_memory_mb: float | None = None  # of the main process: the GPU's, or without one the host's


@dataclass(frozen=True)
class Pruned:
    """What a run has to say that was stopped early, because others did better (petseg.pruning).

    A file of its own and no result.json: whoever averages or ranks results cannot take it for one.
    """

    trial_id: str
    epoch: int  # after which it was stopped
    epochs: int  # that it would have had
    best_epoch: int
    best: float  # val/dice of that epoch
    value: float  # what was compared at the rung
    threshold: float  # what would have been enough
    compared_with: int  # other runs at that rung
    host: str
    train_s: float  # of the run's last life


def evaluation_name(split: str) -> str:
    """Of the file with the numbers of petseg.evaluate."""
    return f"evaluate-{split}.json"


def claim_folder(config: RunConfig, manifest_hash: str, folder: Path) -> None:
    """Write config.json into a new folder, or check that an old one holds this very run.

    Raises ValueError that lists the differences if the folder holds another run: nothing continues from it.
    """
    path = folder / CONFIG_NAME
    stored = load_config(folder, identified=True) if path.exists() else None
    if stored and _weights_are_gone(config):
        same = stored["config"] == config_to_dict(config) and stored["identity"]["manifest_hash"] == manifest_hash
        if same:
            return  # its checkpoints have what the weights file gave
    wanted = identity(config, manifest_hash)
    if stored:
        found = stored["identity"]
        if found != wanted:
            old, new = flatten(found), flatten(wanted)
            changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
            listed = ", ".join(f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in changed)
            raise ValueError(f"{folder} holds another run ({listed}): choose another folder with --out")
        if stored["config"] == config_to_dict(config):
            return
    elif (folder / CHECKPOINTS_NAME).exists():
        raise ValueError(f"{folder} has checkpoints but no {CONFIG_NAME}: choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "trial_id": trial_id(config, manifest_hash),
        "identity": wanted,
        "config": config_to_dict(config),
    }
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _weights_are_gone(config: RunConfig) -> bool:
    return config.model.weights not in ("none", "imagenet") and not Path(config.model.weights).exists()


def load_config(folder: Path, identified: bool = False) -> dict[str, Any]:
    """config.json of a run: trial_id, identity, config. Raises ValueError if the folder holds no run, or a damaged one.

    identified: the first two are needed
    """
    path, advice = folder / CONFIG_NAME, f"put it back from a copy, or delete {folder} and start the run again"
    try:
        content = read_object(path, advice)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no run in {folder}: it has no {CONFIG_NAME}") from None
    needed = {"config": dict, **({"trial_id": str, "identity": dict} if identified else {})}
    if missing := [name for name, kind in needed.items() if not isinstance(content.get(name), kind)]:
        raise ValueError(f"{path} is damaged (it has no {missing[0]}): {advice}")
    return content


def save_overrides(overrides: Mapping[str, Any], folder: Path) -> None:
    """Note config fields (dotted) that this run takes otherwise than its identity says, so that it fits a machine."""
    write_whole(folder / OVERRIDES_NAME, json.dumps(dict(overrides), indent=2) + "\n")


def load_overrides(folder: Path) -> dict[str, Any]:
    """The noted fields, {} if there are none."""
    path = folder / OVERRIDES_NAME
    with contextlib.suppress(FileNotFoundError):
        return read_object(path, "delete it, and `python jobs/retry.py` notes again what the run needs")
    return {}


def save_result(result: Result, folder: Path) -> None:
    write_whole(folder / RESULT_NAME, json.dumps(asdict(result), indent=2) + "\n")


def load_result(folder: Path) -> Result | None:
    """result.json of a run, None while it is not finished; raises ValueError for one that is damaged, or of another
    version."""
    return _load(Result, folder / RESULT_NAME, "delete it to measure the run again")


def save_pruned(pruned: Pruned, folder: Path) -> None:
    write_whole(folder / PRUNED_NAME, json.dumps(asdict(pruned), indent=2) + "\n")


def load_pruned(folder: Path) -> Pruned | None:
    """pruned.json of a run, None if it was not stopped early; raises ValueError for one that is damaged, or of another
    version."""
    return _load(Pruned, folder / PRUNED_NAME, "delete it to go on with the run")


def _load(kind: type[Kind], path: Path, advice: str) -> Kind | None:
    """What a file says as the dataclass that it was written from; None if there is no file."""
    try:
        content = read_object(path, advice)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = kind(**content)
    except TypeError as error:
        raise ValueError(f"{path} was written by another version ({error}): {advice}") from None
    for name, hint in get_type_hints(kind).items():
        if not _fits(getattr(found, name), hint):
            raise ValueError(f"{path} is damaged ({name} is {getattr(found, name)!r}): {advice}")
    return found


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(number, float) for number in value.values())
    return isinstance(value, hint) or (type(value) is int and isinstance(0.0, hint))  # JSON has 1 for 1.0


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, oldest first; a last line that a kill cut short is left out."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / METRICS_NAME).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if isinstance(row := json.loads(line), dict) and "epoch" in row:
                    rows.append(row)
    return rows


def write_metrics(rows: list[Mapping[str, Any]], folder: Path) -> None:
    """Replace metrics.jsonl as a whole."""
    write_whole(folder / METRICS_NAME, "".join(json.dumps(row) + "\n" for row in rows))


def append_metrics(row: Mapping[str, Any], folder: Path) -> None:
    """Add a line to metrics.jsonl, on disk when this returns; an OSError names the file and leaves no half a line.

    Opened for each line: a handle kept for hours goes stale on NFS, and what a full disk refused stays in its buffer.
    """
    path = folder / METRICS_NAME
    line = (json.dumps(row) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(start)
            raise named(error, path) from None
