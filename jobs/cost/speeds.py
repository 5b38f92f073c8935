"""The speed of a trial, from the records of earlier trials or a short probe on this machine. Does not import torch."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from jobs.runs.trial import LAUNCH_NAME, SWEEP_NAME, Trial
from petseg.config import RunConfig
from petseg.config.values import config_to_dict, flatten, identity
from petseg.run.length import EpochTime
from petseg.run_folder.attempts import read_attempts
from petseg.run_folder.layout import load_config
from shards.files import build, read_json_object
from shards.manifest import Manifest
from slurm.environment import DISTRIBUTED_NAMES
from slurm.gpus import visible_gpus
from slurm.resources import Resources

PROBE_TIMEOUT_S = 600.0
FUTILE_TIMEOUT_S = 60.0  # on a machine without GPU for jobs with GPUs: what it finds is no estimate
# besides the model's; augmentation is added where records have it
SPEED_FIELDS = (
    "data.image_size_px", "data.fit", "train.batch_size", "train.accumulation_steps", "train.mixed_precision",
    "train.channels_last", "train.grad_checkpointing", "train.compile", "train.sync_batchnorm", "train.loss",
    "train.start_size_px", "train.full_size_from", "optim.name", "distill.teacher",
)  # fmt: skip
POLICY = "augment.policy"

logger = logging.getLogger(__name__)

SpeedKey = tuple[tuple[str, Any], ...]  # the config's fields that decide how long an epoch takes

MODULE = re.compile(r"^(\w+\.)+(?=\w+:)")  # of an error, at the end of a traceback


@dataclass(frozen=True)
class TrialSpeed:
    """How long a trial takes, and where that is known from."""

    epoch: EpochTime
    rest_s: float  # once per trial: its start, and the measurement of the best weights
    on_gpu: bool
    source: str
    host_memory_gib: float | None = None
    gpu_memory_gib: float | None = None

    def trial_s(self, epochs: float) -> float:
        return self.rest_s + self.epoch.run_s(epochs)


@dataclass(frozen=True)
class Record:
    """The time that an earlier trial took."""

    key: SpeedKey
    policy: str
    manifest_hash: str
    processes: int
    threads: int | None  # of each process; 0 on a GPU, whose speed does not depend on them; None = not recorded
    step_s: float  # training, median of its epochs
    beside_epoch_s: float | None  # validation, saving and the final measurement, spread over the epochs


def speed_key_of(flat: Mapping[str, Any]) -> SpeedKey:
    """The fields of a flat config that decide how fast it trains, sorted by name."""
    names = [name for name in flat if (name.startswith("model.") and name != "model.init") or name in SPEED_FIELDS]
    return tuple((name, flat[name]) for name in sorted(names))


def read_records(runs_dir: Path) -> list[Record]:
    """The records of all trials of all sweeps in a folder; trials that cannot be read are skipped."""
    records = []
    for folder in sorted(path.parent for path in runs_dir.glob(f"*/{SWEEP_NAME}")):
        for path in sorted(folder.glob("trials/*/config.json")):
            try:
                record = _read_record(Trial(path.parent.name, {}, path.parent))
            except (ValueError, KeyError, TypeError, OSError) as error:  # of another version, or cut short
                logger.debug("no record in %s: %s", path.parent, error)
                continue
            if record:
                records.append(record)
    return records


def _read_record(trial: Trial) -> Record | None:
    rows = trial.metrics()
    if not rows:
        return None
    counts = _processes(trial)
    if counts is None:
        return None
    flat = flatten(load_config(trial.folder)["identity"])
    seconds = [float(row["perf/seconds"]) for row in rows]
    ends = [0, *(int(row["step"]) for row in rows)]
    steps = [end - start for start, end in pairwise(ends)]  # a budget may end within an epoch
    step_s = [one / max(count, 1) for one, count in zip(seconds, steps, strict=True)]
    processes, threads = counts
    return Record(
        key=speed_key_of(flat),
        policy=flat[POLICY],
        manifest_hash=flat["manifest_hash"],
        processes=processes,
        threads=threads,
        step_s=median(step_s[1:] or step_s),  # the first epoch fills caches and tunes kernels
        beside_epoch_s=_beside_s(trial, sum(seconds), len(rows)),
    )


def _processes(trial: Trial) -> tuple[int, int | None] | None:
    """(processes, threads) of a result, or of the Slurm jobs that run an unfinished trial.

    The threads are None for a CPU result of a version that did not record them (petseg.run_folder.layout.Result).
    """
    result = trial.result()
    if result is not None:
        return result.world_size, (result.threads or None) if result.is_on_cpu else 0
    launch = read_json_object(trial.folder.parents[1] / LAUNCH_NAME)
    if launch["cluster"] != "slurm":
        return None  # with or without GPU, as the machine had one
    resources = build(Resources, launch["resources"])
    return resources.processes, threads_of(resources)


def threads_of(resources: Resources) -> int:
    return 0 if resources.gpus_per_node else resources.cpus_per_task


def _beside_s(trial: Trial, train_s: float, epochs: int) -> float | None:
    """Seconds per epoch beside training; None after several attempts, as hosts may have different clocks."""
    attempts, state = read_attempts(trial.folder), trial.state()
    if len(attempts) != 1 or state.status != "done" or state.host != attempts[0].host:
        return None
    return max(0.0, state.time - attempts[0].time - train_s) / epochs


def speed_by_records(
    config: RunConfig, manifest: Manifest, resources: Resources, records: Sequence[Record]
) -> TrialSpeed:
    """The speed of the config according to similar trials. Raises LookupError if there are none.

    Trials on CPUs whose threads were not recorded count only for jobs without GPUs, and only if there are no others.
    """
    flat = flatten(identity(config, manifest.hash))
    key = speed_key_of(flat)
    alike = [
        record
        for record in records
        if record.key == key
        and record.manifest_hash == manifest.hash
        and record.processes == resources.processes
        and record.threads in (threads_of(resources), None)
        and (record.threads is not None or not resources.gpus_per_node)
    ]
    if not alike:
        raise LookupError("no records of trials like these")
    alike = [record for record in alike if record.threads is not None] or alike
    same = [record for record in alike if record.policy == config.augment.policy]
    used = same or alike
    train_s = median(record.step_s for record in used) * steps_of_epoch(config, manifest)
    beside = [record.beside_epoch_s for record in used if record.beside_epoch_s is not None]
    beside_s = median(beside) if beside else train_s * _share_of_validation(manifest)
    source = f"records of {len(used)} trial{'s' if len(used) > 1 else ''}"
    if not same:
        source += " with another augmentation"
    if used[0].threads is None:
        source += " on an unknown number of threads"
    if not beside:
        source += ", validation estimated as a third of training per picture"
    return TrialSpeed(EpochTime(train_s, beside_s), rest_s=0.0, on_gpu=resources.gpus_per_node > 0, source=source)


def steps_of_epoch(config: RunConfig, manifest: Manifest) -> int:
    from petseg.data.plan import steps_per_epoch  # numpy, which `--help` of the commands does without

    return steps_per_epoch(manifest.splits["train"].num_samples, config.train.batch_size)


def _share_of_validation(manifest: Manifest) -> float:
    """Validation time as a share of training time: a forward pass takes about a third of forward and backward."""
    splits = manifest.splits
    return splits["val"].num_samples / splits["train"].num_samples / 3 if "val" in splits else 0.0


def speed_by_probe(config: RunConfig, manifest: Manifest, resources: Resources) -> TrialSpeed:
    """Train a few steps in a subprocess. Raises LookupError with the last line of its error if it fails."""
    threads = min(resources.cpus_per_task, len(os.sched_getaffinity(0)))
    request = {"config": config_to_dict(config), "processes": resources.processes, "threads": threads}
    env = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED_NAMES}
    env.pop("ACCELERATE_MIXED_PRECISION", None)
    if not resources.gpus_per_node:
        env["CUDA_VISIBLE_DEVICES"] = ""
    timeout_s = FUTILE_TIMEOUT_S if resources.gpus_per_node and not visible_gpus() else PROBE_TIMEOUT_S
    command = [sys.executable, "-m", "jobs.cost.probe"]
    try:
        # made and removed here, because a probe that takes too long is killed
        with tempfile.TemporaryDirectory(prefix="petseg-probe-") as folder:
            done = subprocess.run(
                command, input=json.dumps(request | {"folder": folder}), env=env, capture_output=True, text=True,
                timeout=timeout_s, check=True,
            )  # fmt: skip
        probed = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise LookupError(f"the probe did not end in {timeout_s:.0f} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        without_module = MODULE.sub("", last)
        raise LookupError(f"the probe failed: {without_module}") from None
    return speed_from_probe(probed, config, manifest, resources)


def speed_from_probe(
    probed: Mapping[str, Any], config: RunConfig, manifest: Manifest, resources: Resources
) -> TrialSpeed:
    """The speed of a whole trial, from what a probe measured in one process."""
    samples = {name: split.num_samples for name, split in manifest.splits.items()}
    eval_s = probed["eval_s_per_sample"] / resources.processes
    val_s = samples.get("val", 0) * eval_s
    test_s = samples.get("test", 0) * eval_s if config.train.test else 0.0
    load_s = probed["load_s_per_sample"] * sum(samples.get(name, 0) for name in ("train", "val"))
    source = f"a probe of {probed['steps']} steps on {probed['device']}"
    if resources.processes > 1:
        source += f" as one of {resources.processes} processes, without what they exchange"
    return TrialSpeed(
        epoch=EpochTime(steps_of_epoch(config, manifest) * probed["step_s"], val_s + probed["save_s"]),
        rest_s=probed["start_s"] + load_s + val_s + test_s,
        on_gpu=probed["on_gpu"],
        source=source,
        host_memory_gib=probed["host_memory_gib"],
        gpu_memory_gib=probed["gpu_memory_gib"] or None,
    )


def probes_needed(configs: Mapping[str, RunConfig]) -> Iterator[tuple[list[str], RunConfig]]:
    """Yield (ids of trials, the config to probe for them) for each model, batch, size, precision and shard set.

    An augmented config is preferred: it costs more, and an estimate should rather be too high.
    """
    groups: dict[tuple[str, SpeedKey], list[str]] = {}
    for identifier, config in configs.items():
        key = config.data.shards, speed_key_of(flatten(config_to_dict(config)))
        groups.setdefault(key, []).append(identifier)
    for ids in groups.values():
        yield ids, max((configs[i] for i in ids), key=lambda config: config.augment.policy != "none")
