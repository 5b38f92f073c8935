"""Puts together a weights file from the folders of runs: one run, an average of weights, or an ensemble."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from petseg.config import RunConfig
from petseg.config.values import config_from_dict
from petseg.inference.header import Combined, Header, Origin, petseg_version
from petseg.inference.weights_file import MAKE_ONE, Tensors
from petseg.models.networks import Network
from petseg.run_folder.checkout import running_code
from petseg.run_folder.checkpoint import choose_checkpoint
from petseg.run_folder.checkpoint_files import load_tensors
from petseg.run_folder.layout import evaluation_name, load_config, load_result
from petseg.targets.target import implied_target, load_target
from shards.classes import ClassEntry
from shards.files import NotRegular, read_json_object
from shards.manifest import MANIFEST_NAME, SPLITS, load_manifest

CONFIDENT_SD = 1.96  # half of a 95 % interval of a mean, in its standard errors
EVALUATION = ("protocol", "tta", "keep_largest", "boundary_ratio", "manifest_hash", "checkpoint", "metrics")

Which = Literal["best", "last"]


@dataclass(frozen=True)
class RunWeights:
    """The weights of one run and what is known of them."""

    folder: Path
    config: RunConfig
    classes: tuple[ClassEntry, ...]
    target: str
    origin: Origin
    tensors: Tensors

    @property
    def network(self) -> Network:
        return Network.of(self.config.model)

    def rule(self) -> dict[str, object]:
        """What runs must share to be used together."""
        data = self.config.data
        classes = [one.name for one in self.classes]
        return {"classes": classes, "data.image_size_px": data.image_size_px, "data.fit": data.fit}


def read_run(folder: Path, which: Which = "best") -> RunWeights:
    """The weights of a run. Raises ValueError if there are none yet, Failure if they are damaged."""
    stored = load_config(folder, identified=True)
    config = config_from_dict(stored["config"])
    checkpoint = choose_checkpoint(folder, which)
    target = load_target(folder) or implied_target()
    result = load_result(folder) if which == "best" else None
    origin = Origin(
        trial_id=stored["trial_id"],
        manifest_hash=str(stored["identity"]["manifest_hash"]),
        attribution=_attribution(folder),
        checkpoint=checkpoint.folder.name,
        metrics={name: value for name, value in result.metrics.items() if math.isfinite(value)} if result else {},
        evaluations=_evaluations(folder, checkpoint.folder.name),
    )
    tensors = load_tensors(checkpoint.folder, "model.safetensors")
    return RunWeights(folder, config, target.classes, target.name, origin, tensors)


def combine(runs: Sequence[RunWeights], average: bool = False) -> tuple[Header, Tensors]:
    """The header and the tensors of a weights file. Raises ValueError for runs that do not fit together.

    average: one network with the mean of the runs' weights, in place of an ensemble
    """
    first = runs[0]
    for other in runs[1:]:
        _require_same(first, other, first.rule(), other.rule())
    combined: Combined = "single" if len(runs) == 1 else "average" if average else "ensemble"
    networks = tuple(run.network for run in runs)
    if combined == "ensemble":
        tensors = {f"members.{i}.{name}": t for i, run in enumerate(runs) for name, t in run.tensors.items()}
    else:
        for other in runs[1:]:
            _require_same(first, other, vars(first.network), vars(other.network))
        networks, tensors = networks[:1], _mean([run.tensors for run in runs])
    data, train = first.config.data, first.config.train
    header = Header(
        models=networks,
        combined=combined,
        target=first.target,
        border=data.border,
        classes=first.classes,
        image_size_px=data.image_size_px,
        fit=data.fit,
        mixed_precision=train.mixed_precision,
        channels_last=train.channels_last,
        runs=tuple(run.origin for run in runs),
        measured={},
        code=running_code(),
        petseg=petseg_version(),
    )
    return header, tensors


def interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of a mean over pictures, by the normal distribution; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, half = statistics.fmean(values), CONFIDENT_SD * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - half, mean + half]


def numbers_of(content: dict[str, Any]) -> dict[str, Any]:
    """What a weights file keeps of the content of an evaluate-SPLIT.json."""
    kept = {name: content[name] for name in EVALUATION if name in content}
    kept["metrics"] = {name: v for name, v in kept.get("metrics", {}).items() if math.isfinite(v)}
    return kept | {"dice_interval_95": interval(list(content.get("dice", {}).values()))}


def _evaluations(folder: Path, checkpoint: str) -> dict[str, Any]:
    """The numbers of petseg.evaluate of this checkpoint, by split; a damaged file is left out."""
    found = {}
    for split in SPLITS:
        try:
            content = read_json_object(folder / evaluation_name(split))
            if content.get("checkpoint") == checkpoint:
                found[split] = numbers_of(content)
        except (FileNotFoundError, NotRegular, ValueError, TypeError, AttributeError):
            continue
    return found


def _attribution(folder: Path) -> str:
    """Whose pictures the run saw, by the manifest that a finished run keeps; empty if it keeps none."""
    if not (folder / MANIFEST_NAME).exists():
        return ""
    try:
        return load_manifest(folder).source.attribution
    except ValueError:
        return ""


def _mean(states: Sequence[Tensors]) -> Tensors:
    """The mean of each tensor, BatchNorm's statistics included; counters are the first run's."""
    first = states[0]
    if len(states) == 1:
        return dict(first)
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def _require_same(one: RunWeights, other: RunWeights, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, value in ours.items():
        if value != theirs[name]:
            raise ValueError(
                f"{one.folder} and {other.folder} do not fit together ({name} {value!r} and {theirs[name]!r}): "
                f"{MAKE_ONE} of each"
            )
