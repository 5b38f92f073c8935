"""Finds what would fail each of a sweep's trials, before anything is written or submitted."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Cell
from jobs.runs.launch import Launch
from petseg.config import OWN_ARCHITECTURES, RunConfig, TrainConfig

ENCODERS = "segmentation_models_pytorch"
NEEDED_SPLITS = ("train", "val")


def require_possible(launch: Launch, cells: Iterable[Cell], sets: ShardSets) -> None:
    """Raises ValueError for cells that cannot train with these resources, shard sets and packages."""
    for config in (cell.config for cell in cells):
        _require_splits(config, sets)
        _require_resources(config.train, launch)
        if (arch := config.model.arch) not in OWN_ARCHITECTURES and find_spec(ENCODERS) is None:
            raise ValueError(f"model.arch = {arch!r} needs {ENCODERS}: pip install 'petseg[encoders]'")


def _require_resources(train: TrainConfig, launch: Launch) -> None:
    if train.mixed_precision != "fp16" and train.batch_size >= launch.resources.processes:
        return  # nothing to ask this machine for
    resources, _ = launch.settle(1)
    if train.mixed_precision == "fp16" and not resources.gpus_per_node:
        raise ValueError(
            "train.mixed_precision = 'fp16' needs a GPU, and these trials have none: add --set "
            "train.mixed_precision=bf16"
        )
    if train.batch_size < resources.processes:
        raise ValueError(
            f"train.batch_size = {train.batch_size} is the batch of all {resources.processes} processes of a trial "
            "together: raise it, or ask for fewer --nodes or --gpus"
        )


def _require_splits(config: RunConfig, sets: ShardSets) -> None:
    splits = sets.of(config).splits
    if missing := [name for name in NEEDED_SPLITS if name not in splits]:
        raise ValueError(
            f"{config.data.shards} has no samples in split {' and '.join(missing)}: it has {', '.join(splits)}"
        )
