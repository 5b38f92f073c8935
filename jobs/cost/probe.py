"""Time a few training steps of a config on this machine: `python -m jobs.cost.probe`, started by jobs.cost.speeds.

Reads {"config": a config.json's tree, "processes": ranks of a trial, "threads": of torch, "folder": an
empty one} from stdin, and writes one line of JSON to stdout.
"""

from __future__ import annotations

import itertools
import json
import logging
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from petseg.config import RunConfig
from petseg.config.values import config_from_dict, with_values
from petseg.data.loader import Batch
from petseg.data.store import open_store
from petseg.evaluation.network import windows_per_picture
from petseg.footprint.utilization import device_name
from petseg.run.batches import eval_inputs, take_step, train_batches
from petseg.run.parts import Parts, build_parts
from petseg.run.run import Run, new_run
from petseg.run_folder.checkpoint import save_checkpoint
from petseg.training.step import train_step

WARM_UP_STEPS = 2  # allocations, autotuning and lazy initialisation happen in these
MEASURED_STEPS = 5
PATIENCE_S = 20.0  # a slow machine measures fewer steps, at least one after a first that does not count
GIB = 2**30


@dataclass(frozen=True)
class Probe:
    """The measurements of one process with its share of the batch."""

    device: str
    on_gpu: bool
    threads: int
    steps: int
    step_s: float  # median
    eval_s_per_sample: float
    save_s: float  # of one checkpoint, to the temporary folder
    load_s_per_sample: float  # reading and decoding
    start_s: float  # opening model and data, without imports
    gpu_memory_gib: float  # 0 without a GPU
    host_memory_gib: float


def probe(config: RunConfig, processes: int, threads: int, folder: Path) -> Probe:
    """Train for a few steps as one of `processes` ranks would, without the communication between ranks."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    # a probe decodes only what it trains on and leaves no cache behind; start_size_px would give its few steps the
    # smallest pictures, and an estimate should rather be too high
    small = with_values(share_of(config, processes), {"data.cache": "none", "train.start_size_px": 0})
    store = open_store(small.data.shards, small.data.cache_dir, small.data.cache_gb)
    parts = build_parts(small, store, folder, world_size=1, splits=("train",))
    start_s = time.perf_counter() - began
    try:
        began = time.perf_counter()
        batches = endless(parts)
        steps = [take_step(batches) for _ in range(WARM_UP_STEPS + MEASURED_STEPS)]
        samples = sum(len(batch.plan.ids) for micro_batches in steps for batch in micro_batches)
        load_s_per_sample = (time.perf_counter() - began) / samples
        times = time_steps(new_run(parts), steps)
        return Probe(
            device=device_name(parts.device),
            on_gpu=parts.device.type == "cuda",
            threads=threads,
            steps=len(times),
            step_s=median(times),
            eval_s_per_sample=time_evaluation(parts, steps[0][0]) * windows_per_picture(parts.splits["train"].tars),
            save_s=time_save(parts, folder),
            load_s_per_sample=load_s_per_sample,
            start_s=start_s,
            gpu_memory_gib=torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0,
            host_memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        )
    finally:
        parts.close()


def share_of(config: RunConfig, processes: int) -> RunConfig:
    """The config with one rank's share of the batch, in as many micro-batches."""
    micro_batches = config.train.accumulation_steps or 1  # 0 = decided here, by this device's memory
    share = -(-config.train.batch_size // (processes * micro_batches)) * micro_batches
    return with_values(config, {"train.batch_size": share})


def endless(parts: Parts) -> Iterator[Batch]:
    """The batches of one epoch after the other: a small shard set has few steps in each."""
    for epoch in itertools.count(1):
        yield from train_batches(parts, epoch)


def time_steps(run: Run, steps: list[list[Batch]]) -> list[float]:
    """Seconds of each measured step with the largest batch, since the last batch of an epoch is smaller."""
    device = run.parts.device
    run.parts.model.train()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    times: list[tuple[int, float]] = []
    for micro_batches in steps:
        began = now(device)
        train_step(run, 1, 0, micro_batches, sums)
        times.append((sum(len(batch.plan.ids) for batch in micro_batches), now(device) - began))
        if len(times) > 1 and sum(seconds for _, seconds in times) > PATIENCE_S:
            break
    times = times[min(WARM_UP_STEPS, len(times) - 1) :]
    largest = max(samples for samples, _ in times)
    return [seconds for samples, seconds in times if samples == largest]


@torch.no_grad()
def time_evaluation(parts: Parts, batch: Batch) -> float:
    """Seconds per sample of the second of two forward passes with their loss."""
    parts.bare_model.eval()
    seconds = 0.0
    for _ in range(2):
        began = now(parts.device)
        image, target = eval_inputs(parts, batch)
        with parts.accelerator.autocast():
            logits = parts.bare_model(image)
        parts.loss(logits, target)
        seconds = now(parts.device) - began
    return seconds / len(batch.plan.ids)


def time_save(parts: Parts, folder: Path) -> float:
    began = time.perf_counter()
    save_checkpoint(folder / "checkpoints", 1, parts.learner, {"best": {"step": 0}})
    return time.perf_counter() - began


def now(device: torch.device) -> float:
    """The time once the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    request: dict[str, Any] = json.load(sys.stdin)
    config, folder = config_from_dict(request["config"]), Path(request["folder"])
    done = probe(config, request["processes"], request["threads"], folder)
    sys.stdout.write(json.dumps(asdict(done)) + "\n")


if __name__ == "__main__":
    main()
