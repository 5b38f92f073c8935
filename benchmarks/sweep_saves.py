"""What checkpoints cost of an epoch, computed from the time of one save and of one training step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.sweep_rows import Row
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.store import open_store
from petseg.run.batches import take_step, train_batches
from petseg.run.parts import Parts, build_parts
from petseg.run.run import Run, new_run
from petseg.run_folder.checkpoint import save_checkpoint
from petseg.training.step import train_step
from shards.pack import pack
from shards.packing.options import PackConfig

TRAIN_SAMPLES = 3_312  # of Oxford-IIIT Pet
NUM_PETS = 240  # drawn; 108 of them in train: four steps, the last of 12 samples
SAVE_RUNS = 5
CONFIG = {"model.arch": "resnet34_unet", "model.width": 64, "data.image_size_px": 128, "train.batch_size": 32}


def measure_saves(scratch: Path, steps: int, limit_percent: float) -> Iterator[Row]:
    shards = scratch / "shards"
    pack(PackConfig(out=shards, synthetic=NUM_PETS, image_size_px=128, samples_per_shard=64))
    config = with_values(RunConfig(), CONFIG | {"data.shards": str(shards), "data.cache_dir": str(scratch / "cache")})
    parts = build_parts(config, open_store(str(shards)), scratch / "run", splits=["train"])
    try:
        step_times = time_steps(new_run(parts), steps)
        save_times = time_saves(parts)
    finally:
        parts.close()
    size_mb = sum(path.stat().st_size for path in newest(scratch).iterdir()) / 1e6
    device = parts.device.type
    yield Row.of(f"one step of 32 at 128 px, resnet34_unet, {device}", step_times, "s", None)
    yield Row.of(f"one save of it, {size_mb:.0f} MB", save_times, "s", None, "files synced, an old one deleted")
    yield share_row(step_times, save_times, config, limit_percent)


def share_row(steps: Sequence[float], saves: Sequence[float], config: RunConfig, limit_percent: float) -> Row:
    step_s, save_s = statistics.median(steps), statistics.median(saves)
    count, epoch_s, percent = share(step_s, save_s, config)
    bound_s = save_s * (100 / limit_percent - 1)  # the epoch of which one save is just the limit
    note = (
        f"computed: {count} {'save' if count == 1 else 'saves'} in an epoch of {epoch_s:.0f} s; "
        f"{share(min(steps), max(saves), config)[2]:.2f} % of the quickest step and the slowest save; a device that "
        f"trains an epoch in less than {bound_s:.0f} s ({TRAIN_SAMPLES / bound_s:.0f} images/s) would be over"
    )
    return Row.of(f"saves' share of an epoch of {TRAIN_SAMPLES:,}", [percent], "%", limit_percent, note)


def share(step_s: float, save_s: float, config: RunConfig) -> tuple[int, float, float]:
    """Saves of an epoch (one at its end, one for each full `save_every_min` within), its seconds, their percent."""
    epoch_s = math.ceil(TRAIN_SAMPLES / config.train.batch_size) * step_s
    count = 1 + int(epoch_s // (60 * config.train.save_every_min))
    return count, epoch_s, 100 * count * save_s / (epoch_s + count * save_s)


def time_steps(run: Run, count: int) -> list[float]:
    """Optimizer steps with augmentation and metrics as training does them; the first is not counted."""
    parts = run.parts
    parts.model.train()
    sums = torch.zeros(4, dtype=torch.float64, device=parts.device)
    seconds: list[float] = []
    epoch = 0
    while len(seconds) <= count:
        epoch += 1
        batches = train_batches(parts, epoch)
        for step in range(run.progress.steps_per_epoch):
            start = time.perf_counter()
            train_step(run, epoch, step, take_step(batches), sums)
            sums.tolist()  # waits for the device
            seconds.append(time.perf_counter() - start)
            if len(seconds) > count:
                break
    return seconds[1:]


def time_saves(parts: Parts) -> list[float]:
    """Saves in a row into one folder: from the third on each deletes an older one, as in training."""
    seconds = []
    for step in range(1, SAVE_RUNS + 3):
        state = {"epoch": step, "best": {"step": step, "epoch": step, "val/dice": 0.5}}
        start = time.perf_counter()
        save_checkpoint(parts.folder / "checkpoints", step, parts.learner, state)
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def newest(scratch: Path) -> Path:
    return max((scratch / "run" / "checkpoints").glob("step-*"))
