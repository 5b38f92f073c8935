"""The files of a run's folder, readable without torch so that status and report are quick.

config.json (resolved, with the run's identity), overrides.json (fields that a machine forced on it), metrics.jsonl (a
line per epoch), result.json (written last: its presence means finished) or pruned.json (stopped early, unless it is
resumed), per_image.npz, val_masks.npz, calibration.json, overlays/, overlay_masks.npz and best_overlays/
(petseg.tracking.overlays), checkpoints/, wandb/, tracking.json (petseg.tracking.note) and run_name.json
(petseg.tracking.naming), lives.json (petseg.run_folder.attempts), heartbeat.json (petseg.run_folder.heartbeat).
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from petseg.config import WEIGHTS_FIELDS, RunConfig
from petseg.config.values import (
    config_from_dict,
    config_to_dict,
    flatten,
    identity,
    trial_id,
    weights_files,
    with_values,
)
from petseg.footprint.hardware import CPU
from shards.files import NotRegular, append, parse_json, read_as, read_bounded, read_json_object, write_whole

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
MAX_METRICS_BYTES = 256 << 20  # a row has about 600 bytes
OVERRIDABLE = "train."  # start of the fields that a machine may force on a run: none of them is a path

Outcome = TypeVar("Outcome")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of a finished run."""

    trial_id: str
    metrics: dict[str, float]  # of the best weights: val/*, and test/* if measured
    best_epoch: int
    epochs: int
    parameters: int
    world_size: int
    host: str
    device: str
    train_s: float  # of the run's last attempt
    images_per_s: float  # median over that attempt's epochs
    data_wait: float  # median share of the time in which a step waited for data
    headroom: float  # median images/s without the wait for data
    mfu: float | None = None  # median model FLOPs utilization; None if the device's peak is not known
    peak_memory_mb: float | None = None  # of the main process, on the GPU or else on the host
    threads: int = 0  # of each process on a CPU; 0 = it had a GPU, or an earlier version wrote this

    def floor(self, split: str) -> float | None:
        """The mean Dice of calling every pixel the same class, the best for that; None if it was not measured."""
        names = (f"{split}/{name}" for name in ("all_pet_dice", "one_class_dice"))
        return next((self.metrics[name] for name in names if name in self.metrics), None)

    @property
    def is_on_cpu(self) -> bool:
        """Whether the run trained on a CPU, which earlier versions noted only in the device's name."""
        return self.threads > 0 or self.device.startswith(CPU)


@dataclass(frozen=True)
class Pruned:
    """The outcome of a run that was stopped early because others did better (petseg.training.pruning).

    It is a file apart from result.json, so that nothing that averages or ranks results takes it for one.
    """

    trial_id: str
    epoch: int  # after which it was stopped
    epochs: int  # that were planned
    best_epoch: int
    best: float  # val/dice of that epoch
    value: float  # that was compared at the rung
    threshold: float  # that the run had to reach
    compared_with: int  # other runs at that rung
    host: str
    train_s: float  # of the run's last attempt


def evaluation_name(split: str) -> str:
    """Name of the file with the numbers of petseg.evaluate."""
    return f"evaluate-{split}.json"


def claim_folder(config: RunConfig, manifest_hash: str, folder: Path) -> None:
    """Write config.json into a new folder, or check that an existing one holds this very run.

    Raises ValueError that lists the differences if the folder holds another run.
    """
    path = folder / CONFIG_NAME
    stored = load_config(folder, identified=True) if path.exists() or path.is_symlink() else None
    gone = {name: WEIGHTS_FIELDS[name] for name, path in weights_files(config).items() if not Path(path).exists()}
    if stored and gone and config_from_dict(stored["config"]) == config:
        # its checkpoints have the weights already, and a finished run needs no teacher
        rest = flatten(identity(with_values(config, gone), manifest_hash))
        if rest.items() <= flatten(stored["identity"]).items():
            return
    wanted = identity(config, manifest_hash)
    if stored:
        if stored["identity"] != wanted:
            old, new = flatten(stored["identity"]), flatten(wanted)
            changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
            listed = ", ".join(f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in changed)
            raise ValueError(f"{folder} holds another run ({listed}): choose another folder")
        if stored["config"] == config_to_dict(config):
            return
    elif (folder / CHECKPOINTS_NAME).exists():
        raise ValueError(f"{folder} has checkpoints but no {CONFIG_NAME}: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"trial_id": trial_id(config, manifest_hash), "identity": wanted, "config": config_to_dict(config)}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def load_config(folder: Path, identified: bool = False) -> dict[str, Any]:
    """config.json of a run: trial_id, identity, config. Raises ValueError if the folder holds no run, or a damaged one.

    identified: require the first two, which otherwise may be empty
    The folder can be a stranger's: ask petseg.data.consent before anything that the config names is fetched, executed
    or written to.
    """
    path, advice = folder / CONFIG_NAME, f"put it back from a copy, or delete {folder} and start the run again"
    try:
        content = read_json_object(path, advice)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no run in {folder.absolute()}: it has no {CONFIG_NAME}{_runs_in(folder)}") from None
    except NotRegular as error:
        raise ValueError(str(error)) from None
    content = ({} if identified else {"trial_id": "", "identity": {}}) | content
    needed = {"trial_id": str, "identity": dict, "config": dict}
    if odd := [name for name, kind in needed.items() if not isinstance(content.get(name), kind)]:
        raise ValueError(f"{path} is damaged (its {odd[0]} is {content.get(odd[0])!r:.80}): {advice}")
    content["identity"] = {"manifest_hash": ""} | content["identity"]
    return content


def _runs_in(folder: Path) -> str:
    """Advice that names at most three runs below the folder; empty if there are none."""
    runs = sorted(path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{CONFIG_NAME}"))
    return f"; name one of the runs in it, such as {', '.join(map(str, runs[:3]))}" if runs else ""


def save_overrides(overrides: Mapping[str, Any], folder: Path) -> None:
    """Write the config fields (dotted) in which this run differs from its identity, so that it fits a machine."""
    write_whole(folder / OVERRIDES_NAME, json.dumps(dict(overrides), indent=2) + "\n")


def load_overrides(folder: Path) -> dict[str, Any]:
    """The overridden fields, {} if there are none; raises ValueError for a field that petseg never overrides."""
    path = folder / OVERRIDES_NAME
    try:
        overrides = read_json_object(path, "delete it; a retry of the run notes again what the run needs")
    except FileNotFoundError:
        return {}
    except NotRegular as error:
        raise ValueError(str(error)) from None
    if odd := [name for name in overrides if not name.startswith(OVERRIDABLE)]:
        raise ValueError(f"{path} sets {odd[0]}, and may change nothing but fields of {OVERRIDABLE}: delete it")
    return overrides


def save_result(result: Result, folder: Path) -> None:
    write_whole(folder / RESULT_NAME, json.dumps(asdict(result), indent=2) + "\n")


def load_result(folder: Path) -> Result | None:
    """result.json of a run, None while it is not finished; raises ValueError for one that another version wrote."""
    path, advice = folder / RESULT_NAME, "delete it to measure the run again"
    result = _load(Result, path, advice)
    if result and not math.isfinite(result.metrics.get("val/dice", math.nan)):
        raise ValueError(f"{path} is damaged (it has no val/dice): {advice}")
    return result


def save_pruned(pruned: Pruned, folder: Path) -> None:
    write_whole(folder / PRUNED_NAME, json.dumps(asdict(pruned), indent=2) + "\n")


def load_pruned(folder: Path) -> Pruned | None:
    """pruned.json of a run, None if it was not stopped early; raises ValueError for one that another version wrote."""
    return _load(Pruned, folder / PRUNED_NAME, "delete it to go on with the run")


def _load(kind: type[Outcome], path: Path, advice: str) -> Outcome | None:
    try:
        return read_as(kind, path, advice)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except NotRegular as error:
        raise ValueError(f"{error}: {advice}") from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, oldest first: epoch, step and numbers.

    Other lines are left out: the half of a last line that a kill leaves and, with a warning, any others.
    """
    path = folder / METRICS_NAME
    try:
        lines = read_bounded(path, MAX_METRICS_BYTES).splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, NotRegular) as error:
        warn_once(f"left out: {error}")
        return []
    rows = [row for line in lines if (row := parse_row(line, path))]
    if len(rows) < len(lines) - 1:
        warn_once(f"{path}: {len(lines) - len(rows)} of {len(lines)} lines are no rows of numbers, and are left out")
    return rows


def parse_row(line: bytes, path: Path) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is no row of numbers."""
    try:
        row = parse_json(line, path)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("epoch")) is not int:
        return None
    return row if all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in row.values()) else None


@functools.lru_cache(maxsize=1000)
def warn_once(message: str) -> None:
    """Log a warning only once, even if its file is read again and again, as by `status --watch`."""
    logger.warning("%s", message)


def write_metrics(rows: list[Mapping[str, Any]], folder: Path) -> None:
    """Replace metrics.jsonl as a whole."""
    write_whole(folder / METRICS_NAME, "".join(json.dumps(row) + "\n" for row in rows))


def append_metrics(row: Mapping[str, Any], folder: Path) -> None:
    """Add a line to metrics.jsonl, on disk when this returns; an OSError names the file and leaves no half a line.

    The file is opened for each line: a handle kept for hours goes stale on NFS, and after a full disk keeps its buffer.
    """
    append(folder / METRICS_NAME, json.dumps(row) + "\n")
