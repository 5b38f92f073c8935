"""The artifacts of a finished run in wandb: the shard set's manifest, the predictions, and the best weights.

wandb identifies an artifact by the digest of its files: unchanged content is not uploaded again and makes no new
version, and all runs on a shard set share one version of its manifest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from petseg.run_folder.layout import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    PER_IMAGE_NAME,
    RESULT_NAME,
    VAL_MASKS_NAME,
    load_config,
)
from shards.manifest import MANIFEST_NAME, load_manifest

Which = Literal["none", "small", "all"]
MAX_NAME = 128  # characters


@dataclass(frozen=True)
class Artifact:
    """An artifact's name, and the files of this version."""

    name: str
    type: str
    files: Mapping[str, str]  # name in the artifact -> path
    metadata: Mapping[str, Any] = field(default_factory=dict)


def find_artifacts(folder: Path, run_id: str, which: Which) -> list[Artifact]:
    """The artifacts whose files the run has; none before it is finished."""
    if which == "none" or not (folder / RESULT_NAME).exists():
        return []
    artifacts = []
    if manifest := find_manifest(folder):
        data_hash = load_config(folder, identified=True)["identity"]["manifest_hash"]
        files = {MANIFEST_NAME: str(manifest)}
        artifacts.append(Artifact(f"shards-{data_hash[:16]}", "dataset", files, {"data_hash": data_hash}))
    kept = {name: str(folder / name) for name in (PER_IMAGE_NAME, VAL_MASKS_NAME) if _is_own(folder / name)}
    if kept:
        artifacts.append(Artifact(_name("predictions", run_id), "predictions", kept))
    if which == "all" and (weights := find_best_weights(folder)):
        files = {weights.name: str(weights), CONFIG_NAME: str(folder / CONFIG_NAME)}
        artifacts.append(Artifact(_name("model", run_id), "model", files))
    return artifacts


def find_manifest(folder: Path) -> Path | None:
    """The copy of its shard set's manifest in a run's folder, None if it is absent or another set's."""
    wanted = load_config(folder)["identity"]["manifest_hash"]
    with contextlib.suppress(ValueError, OSError):
        if load_manifest(folder).hash == wanted:
            return folder / MANIFEST_NAME
    return None


def _is_own(path: Path) -> bool:
    """Whether it is a file of the folder itself: through a link, any file could be uploaded."""
    return path.is_file() and not path.is_symlink()


def find_best_weights(folder: Path) -> Path | None:
    """The weights of the run's best checkpoint, None if there are none in its folder."""
    from petseg.run_folder.checkpoint import list_checkpoints  # torch, which most runs do not need here

    checkpoints = list_checkpoints(folder / CHECKPOINTS_NAME)
    best = [c for c in checkpoints if c.step == checkpoints[-1].state["best"]["step"]]
    own = [c.folder / "model.safetensors" for c in best if not c.folder.is_symlink()]
    return own[0] if own and _is_own(own[0]) else None


def _name(kind: str, run_id: str) -> str:
    return f"{kind}-{run_id[-(MAX_NAME - len(kind) - 1) :]}"


def build(artifact: Artifact) -> Any:
    """The artifact as an object of wandb's client."""
    import wandb

    built = wandb.Artifact(artifact.name, artifact.type, metadata=dict(artifact.metadata))
    for name, path in artifact.files.items():
        built.add_file(path, name=name, policy="immutable", skip_cache=True)  # used in place, without copies
    return built
