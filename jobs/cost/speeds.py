"""How fast a trial is: by the records of earlier ones, else by a short probe on this machine. Free of torch."""

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
from petseg.run_folder.attempts import read_lives
from petseg.run_folder.layout import load_config
from shards.files import build, read_json_object
from shards.manifest import Manifest
from slurm.environment import DISTRIBUTED_NAMES
from slurm.gpus import visible_gpus
from slurm.resources import Resources

PROBE_TIMEOUT_S = 600.0
FUTILE_TIMEOUT_S = 60.0  # on a machine without GPU for jobs with GPUs: what it finds is no estimate
# what decides how long an epoch takes; augmentation is added where such trials were seen
SPEED_FIELDS = (
    "data.image_size_px", "train.batch_size", "train.accumulation_steps", "train.mixed_precision",
    "train.channels_last", "train.grad_checkpointing", "train.compile", "train.sync_batchnorm", "train.loss",
    "train.start_size_px", "train.full_size_from", "optim.name",
)  # fmt: skip
POLICY = "augment.policy"

logger = logging.getLogger(__name__)

Speed = tuple[tuple[str, Any], ...]

MODULE = re.compile(r"^(\w+\.)+(?=\w+:)")  # of an error, at the end of a traceback


@dataclass(frozen=True)
class Pace:
    """How long a trial takes, and how that is known."""

    epoch: EpochTime
    rest_s: float  # once a trial: start, and the measurement of the best weights
    on_gpu: bool
    source: str
    host_memory_gib: float | None = None
    gpu_memory_gib: float | None = None

    def trial_s(self, epochs: float) -> float:
        return self.rest_s + self.epoch.run_s(epochs)


@dataclass(frozen=True)
class Record:
    """What an earlier trial took."""

    speed: Speed
    policy: str
    manifest_hash: str
    processes: int
    threads: int | None  # of each process; 0 on a GPU, whose speed does not depend on them; None = nobody noted them
    step_s: float  # of its training: median of its epochs
    beside_epoch_s: float | None  # validation, saving and the measurement at the end, spread over the epochs


def speed_of(flat: Mapping[str, Any]) -> Speed:
    """The fields of a flat config that decide how fast it trains."""
    names = [name for name in flat if name.startswith("model.") or name in SPEED_FIELDS]
    return tuple((name, flat[name]) for name in sorted(names))


def read_records(runs_dir: Path) -> list[Record]:
    """What the trials of all sweeps in a folder took; those that cannot be read are passed over."""
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
    where = _where(trial)
    if where is None:
        return None
    flat = flatten(load_config(trial.folder)["identity"])
    seconds = [float(row["perf/seconds"]) for row in rows]
    ends = [0, *(int(row["step"]) for row in rows)]
    steps = [end - start for start, end in pairwise(ends)]  # a budget may end within an epoch
    step_s = [one / max(count, 1) for one, count in zip(seconds, steps, strict=True)]
    processes, threads = where
    return Record(
        speed=speed_of(flat),
        policy=flat[POLICY],
        manifest_hash=flat["manifest_hash"],
        processes=processes,
        threads=threads,
        step_s=median(step_s[1:] or step_s),  # the first epoch fills caches and tunes kernels
        beside_epoch_s=_beside_s(trial, sum(seconds), len(rows)),
    )


def _where(trial: Trial) -> tuple[int, int | None] | None:
    """(processes, threads): by the result, or by what the jobs of an unfinished trial ask for on Slurm.

    The threads are None for a result on a CPU by a version that did not note them (petseg.run_folder.layout.Result).
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
    """Seconds per epoch beside training; known where the trial had one life, so that one clock saw all of it."""
    lives, state = read_lives(trial.folder), trial.state()
    if len(lives) != 1 or state.status != "done" or state.host != lives[0].host:
        return None
    return max(0.0, state.time - lives[0].time - train_s) / epochs


def pace_by_records(config: RunConfig, manifest: Manifest, resources: Resources, records: Sequence[Record]) -> Pace:
    """How fast the config is by trials that were like it. Raises LookupError if there were none.

    Trials on CPUs whose threads nobody noted count where there are no others, for jobs without GPUs alone.
    """
    flat = flatten(identity(config, manifest.hash))
    speed = speed_of(flat)
    alike = [
        record
        for record in records
        if record.speed == speed
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
        source += ", validation reckoned as a third of training per picture"
    return Pace(EpochTime(train_s, beside_s), rest_s=0.0, on_gpu=resources.gpus_per_node > 0, source=source)


def steps_of_epoch(config: RunConfig, manifest: Manifest) -> int:
    from petseg.data.plan import steps_per_epoch  # numpy, which `--help` of the commands does without

    return steps_per_epoch(manifest.splits["train"].num_samples, config.train.batch_size)


def _share_of_validation(manifest: Manifest) -> float:
    """A forward pass is about a third of forward and backward."""
    splits = manifest.splits
    return splits["val"].num_samples / splits["train"].num_samples / 3 if "val" in splits else 0.0


def pace_by_probe(config: RunConfig, manifest: Manifest, resources: Resources) -> Pace:
    """Train a few steps of the config in a process of its own. Raises LookupError with its last words if it fails."""
    threads = min(resources.cpus_per_task, len(os.sched_getaffinity(0)))
    request = {"config": config_to_dict(config), "processes": resources.processes, "threads": threads}
    env = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED_NAMES}
    env.pop("ACCELERATE_MIXED_PRECISION", None)
    if not resources.gpus_per_node:
        env["CUDA_VISIBLE_DEVICES"] = ""
    timeout_s = FUTILE_TIMEOUT_S if resources.gpus_per_node and not visible_gpus() else PROBE_TIMEOUT_S
    command = [sys.executable, "-m", "jobs.cost.probe"]
    try:
        # made and removed here: a probe whose time is up is killed
        with tempfile.TemporaryDirectory(prefix="petseg-probe-") as folder:
            done = subprocess.run(
                command, input=json.dumps(request | {"folder": folder}), env=env, capture_output=True, text=True,
                timeout=timeout_s, check=True,
            )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise LookupError(f"the probe did not end in {timeout_s:.0f} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        without_module = MODULE.sub("", last)
        raise LookupError(f"the probe failed: {without_module}") from None
    return pace_of(found, config, manifest, resources)


def pace_of(found: Mapping[str, Any], config: RunConfig, manifest: Manifest, resources: Resources) -> Pace:
    """The pace of a whole trial by what a probe found in one process."""
    samples = {name: split.num_samples for name, split in manifest.splits.items()}
    eval_s = found["eval_s_per_sample"] / resources.processes
    val_s = samples.get("val", 0) * eval_s
    test_s = samples.get("test", 0) * eval_s if config.train.test else 0.0
    load_s = found["load_s_per_sample"] * sum(samples.get(name, 0) for name in ("train", "val"))
    source = f"a probe of {found['steps']} steps on {found['device']}"
    if resources.processes > 1:
        source += f" as one of {resources.processes} processes, without what they exchange"
    return Pace(
        epoch=EpochTime(steps_of_epoch(config, manifest) * found["step_s"], val_s + found["save_s"]),
        rest_s=found["start_s"] + load_s + val_s + test_s,
        on_gpu=found["on_gpu"],
        source=source,
        host_memory_gib=found["host_memory_gib"],
        gpu_memory_gib=found["gpu_memory_gib"] or None,
    )


def probes_needed(configs: Mapping[str, RunConfig]) -> Iterator[tuple[list[str], RunConfig]]:
    """(ids of trials, the config to probe for them), one for each distinct model, batch, size, precision and shard set.

    One that is augmented, if there is one: it costs more, and an estimate is to err on that side.
    """
    groups: dict[tuple[str, Speed], list[str]] = {}
    for identifier, config in configs.items():
        key = config.data.shards, speed_of(flatten(config_to_dict(config)))
        groups.setdefault(key, []).append(identifier)
    for ids in groups.values():
        yield ids, max((configs[i] for i in ids), key=lambda config: config.augment.policy != "none")
