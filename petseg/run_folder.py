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
from typing import Any

from petseg.config import RunConfig
from petseg.config_values import config_to_dict, flatten, identity, trial_id
from shards.manifest import write_whole

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
    stored = json.loads(path.read_text()) if path.exists() else None
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


def load_config(folder: Path) -> dict[str, Any]:
    """config.json of a run: trial_id, identity, config. Raises ValueError if the folder holds no run."""
    try:
        return json.loads((folder / CONFIG_NAME).read_text())
    except FileNotFoundError:
        raise ValueError(f"no run in {folder.absolute()}: it has no {CONFIG_NAME}{_runs_in(folder)}") from None


def _runs_in(folder: Path) -> str:
    """What to name instead of a folder of runs: at most three of them."""
    found = sorted(path.parent for pattern in ("*", "trials/*") for path in folder.glob(f"{pattern}/{CONFIG_NAME}"))
    return f"; name one of the runs in it, such as {', '.join(map(str, found[:3]))}" if found else ""


def save_overrides(overrides: Mapping[str, Any], folder: Path) -> None:
    """Note config fields (dotted) that this run takes otherwise than its identity says, so that it fits a machine."""
    write_whole(folder / OVERRIDES_NAME, json.dumps(dict(overrides), indent=2) + "\n")


def load_overrides(folder: Path) -> dict[str, Any]:
    """The noted fields, {} if there are none."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((folder / OVERRIDES_NAME).read_text())
    return {}


def save_result(result: Result, folder: Path) -> None:
    write_whole(folder / RESULT_NAME, json.dumps(asdict(result), indent=2) + "\n")


def load_result(folder: Path) -> Result | None:
    """result.json of a run, None while it is not finished; raises ValueError for one that another version wrote."""
    path = folder / RESULT_NAME
    try:
        return Result(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} was written by another version ({error}): delete it to measure the run again"
        ) from None


def save_pruned(pruned: Pruned, folder: Path) -> None:
    write_whole(folder / PRUNED_NAME, json.dumps(asdict(pruned), indent=2) + "\n")


def load_pruned(folder: Path) -> Pruned | None:
    """pruned.json of a run, None if it was not stopped early; raises ValueError for one that another version wrote."""
    path = folder / PRUNED_NAME
    try:
        return Pruned(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} was written by another version ({error}): delete it to go on with the run") from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, oldest first; a last line that a kill cut short is left out."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / METRICS_NAME).read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
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
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
