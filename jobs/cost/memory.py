"""The GPU memory that a pass of each trial will need, predicted as `python -m petseg.estimate` does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from jobs.cost.speeds import SpeedKey, speed_key_of
from jobs.design.shard_sets import ShardSets
from petseg.config import RunConfig
from petseg.config.values import config_to_dict, flatten
from slurm.resources import Resources

PATIENCE_S = 60.0  # a model takes a few seconds
GIB = 2**30
NOTE = "GPU GiB: predicted, without driver, libraries and allocator gaps, to which petseg.estimate adds 10 % and 1"


def predict_gpu_memory(
    configs: Mapping[str, RunConfig], sets: ShardSets, resources: Resources
) -> tuple[dict[str, float], list[str]]:
    """Trial -> GiB, and notes. Trials that fit their micro-batches to the GPU are left out; without GPUs all are."""
    if not resources.gpus_per_node:
        return {}, []
    from petseg.targets.target import num_classes_of  # numpy, which `--help` does without

    asked = {name: config for name, config in configs.items() if config.train.accumulation_steps}
    groups: dict[tuple[SpeedKey, int], list[str]] = {}
    for name, config in asked.items():
        key = speed_key_of(flatten(config_to_dict(config)))
        with contextlib.suppress(ValueError):  # a target that cannot be had: the doctor says so
            groups.setdefault((key, num_classes_of(config.data, sets.of(config))), []).append(name)
    predicted: dict[str, float] = {}
    began = time.monotonic()
    for (_, num_classes), names in groups.items():
        if time.monotonic() - began > PATIENCE_S:
            return predicted, [
                NOTE,
                f"GPU memory was predicted for {len(predicted)} of {len(asked)} trials, to save time",
            ]
        # the copies of augment.mode "add" take the most
        config = max((asked[name] for name in names), key=lambda c: (c.augment.mode == "add", c.train.averages_weights))
        with contextlib.suppress(ValueError):  # a model that cannot be built: the doctor says so
            predicted |= dict.fromkeys(names, _peak_gib(config, resources.processes, num_classes))
    return predicted, [NOTE] if predicted else []


def _peak_gib(config: RunConfig, processes: int, num_classes: int) -> float:
    from petseg.footprint.memory import footprint  # torch, which the commands of a login node do without where they can
    from petseg.run.micro_batches import samples_per_micro_batch

    samples = samples_per_micro_batch(config, config.train.accumulation_steps, processes)
    return footprint(config, samples, "cuda", processes, num_classes).peak_bytes / GIB
