"""An estimate of what a run will need (parameters, FLOPs, memory, time) without running it, and its table."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from statistics import fmean

import torch
from rich.table import Table

from petseg.config import RunConfig
from petseg.config.sizes import Size
from petseg.config.training import TrainConfig
from petseg.config.values import with_values
from petseg.data.plan import steps_per_epoch
from petseg.data.store import LocalStore, is_remote, read_manifest
from petseg.data.tars import TarReader
from petseg.data.whole.whole_cache import surveyed_sizes
from petseg.footprint.forecast import Forecast, forecast_on_cpu, forecast_on_gpu
from petseg.footprint.hardware import GPUS, Gpu, find_gpu
from petseg.footprint.memory import DeviceType, Footprint, footprint, largest_batch
from petseg.footprint.utilization import flops_per_image, model_flops_utilization
from petseg.metrics.windows import bytes_per_pixel, num_windows
from petseg.run.length import EpochTime, epochs_of
from petseg.run.micro_batches import (
    ACCUMULATION_STEPS,
    RESERVE_BYTES,
    SLACK,
    fewest_micro_batches,
    fits,
    samples_per_micro_batch,
    usable_bytes,
)
from petseg.run.resizing import relative_area
from petseg.targets.pets import SPLIT_SIZES
from petseg.targets.target import num_classes_of
from petseg.training.probe import probe_step
from shards.command import Failure
from shards.terminal import duration

MOST_SAMPLES = 4096  # where the search for the largest micro-batch ends
AREA_STEPS = 1000  # over which the mean area of progressive resizing is taken
GIB, GB = 2**30, 1e9


@dataclass(frozen=True)
class Needs:
    """What a run of a config needs on a device."""

    config: RunConfig  # with its accumulation steps chosen
    world_size: int
    device: str
    memory_bytes: int  # of the device, 0 = not known
    footprint: Footprint
    forecast: Forecast
    largest: int | None  # samples of the largest micro-batch that fits, with copies
    split_sizes: dict[str, int]
    pictures: tuple[Size, ...] = ()  # sizes of some val pictures, with data.fit crop and a local shard set


def estimate_needs(config: RunConfig, world_size: int, device: str, gpu_gb: float) -> Needs:
    """Estimate what a run needs on `world_size` devices.

    device: its name, empty = this machine's; gpu_gb: its memory, 0 = as its data sheet says
    Raises ValueError for an unknown device, and where nothing fits.
    """
    gpu = choose_device(device)
    kind: DeviceType = "cuda" if gpu else "cpu"
    sizes, num_classes = facts_of_set(config)
    memory_bytes = int((gpu_gb or (gpu.memory_gb if gpu else 0)) * GB)
    if not config.train.accumulation_steps:
        fewest = fewest_micro_batches(config, kind, memory_bytes, world_size, num_classes) if memory_bytes else 1
        if fewest is None:
            raise ValueError(f"not even a micro-batch of one sample fits in {memory_bytes / GB:g} GB")
        config = with_values(config, {ACCUMULATION_STEPS: fewest})
    steps = config.train.accumulation_steps
    memory = footprint(config, samples_per_micro_batch(config, steps, world_size), kind, world_size, num_classes)
    return Needs(
        config=config,
        world_size=world_size,
        device=f"{gpu.name}, {memory_bytes / GB:g} GB" if gpu else "this CPU",
        memory_bytes=memory_bytes,
        footprint=memory,
        forecast=forecast(config, memory, gpu, steps),
        largest=find_largest(config, memory, kind, memory_bytes, world_size) if memory_bytes else None,
        split_sizes=sizes,
        pictures=val_pictures(config),
    )


def forecast(config: RunConfig, memory: Footprint, gpu: Gpu | None, micro_batches: int) -> Forecast:
    """The time of a step: measured if the device is this machine's, else estimated from the GPU's data sheet."""
    if gpu is None:
        return forecast_on_cpu(config, memory, micro_batches)
    if not torch.cuda.is_available() or find_gpu(torch.cuda.get_device_name()) != gpu:
        return forecast_on_gpu(memory, gpu, micro_batches)
    try:
        probe = probe_step(config, memory.micro_batch, torch.device("cuda"), num_classes=memory.num_classes)
    except torch.cuda.OutOfMemoryError:
        return forecast_on_gpu(memory, gpu, micro_batches)
    return Forecast(micro_batches * probe.step_s, probe.eval_s_per_sample, f"steps measured on this {gpu.name}")


def choose_device(name: str) -> Gpu | None:
    """The GPU of that name, by default this machine's or an H100; None for a CPU.

    Raises ValueError that lists the known GPUs.
    """
    if name.lower() == "cpu":
        return None
    if not name:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "H100"
    gpu = find_gpu(name)
    if gpu is None:
        raise ValueError(f"--device {name!r} is not known: choose cpu or one of {', '.join(g.name for g in GPUS)}")
    return gpu


def find_largest(config: RunConfig, memory: Footprint, kind: DeviceType, memory_bytes: int, world_size: int) -> int:
    """Samples of the largest micro-batch that fits."""
    return largest_batch(
        lambda n: footprint(config, n, kind, world_size, memory.num_classes).peak_bytes,
        usable_bytes(memory_bytes),
        MOST_SAMPLES,
    )


def facts_of_set(config: RunConfig) -> tuple[dict[str, int], int]:
    """Samples of train and val, and the number of classes: of the shard set, or of a published set if there is
    none yet."""
    try:
        manifest = read_manifest(config.data.shards, config.data.cache_dir, config.data.cache_gb)
    except (ValueError, OSError):
        return SPLIT_SIZES, num_classes_of(config.data, None)
    sizes = {name: manifest.splits[name].num_samples for name in SPLIT_SIZES if name in manifest.splits}
    return sizes, num_classes_of(config.data, manifest)


def val_pictures(config: RunConfig) -> tuple[Size, ...]:
    """The sizes of some val pictures, where evaluation depends on them; () if there is no local set yet."""
    data = config.data
    with contextlib.suppress(ValueError, OSError, Failure):
        if data.fit == "crop" and not is_remote(data.shards):
            with contextlib.closing(TarReader(LocalStore(data.shards), "val", data.image_size_px, "crop")) as reader:
                return tuple(surveyed_sizes(reader))
    return ()


def render(needs: Needs) -> Table:
    """The table that petseg.estimate prints, a row per question."""
    config, model = needs.config, needs.config.model
    encoder = f" on {model.encoder}" if model.encoder else ""
    title = f"{model.arch}{encoder}, {config.data.image_size_px} px, mixed precision {config.train.mixed_precision}"
    table = Table(title=title, title_justify="left", show_header=False)
    for name, text in (
        ("device", f"{needs.world_size} x {needs.device}"),
        ("parameters", _parameters(needs.footprint)),
        ("FLOPs", _flops(needs)),
        ("a step", _micro_batches(needs)),
        ("memory of a micro-batch", _memory(needs.footprint)),
        ("its peak", _peak(needs)),
        ("evaluation", _evaluation(needs)),
        ("largest micro-batch", "" if needs.largest is None else f"{needs.largest} samples{_at_most(needs)}"),
        ("time", _time(needs)),
        ("known by", needs.forecast.known_by),
    ):
        if text:
            table.add_row(name, text)
    return table


def _parameters(memory: Footprint) -> str:
    encoder = f", {memory.encoder_parameters / 1e6:.2f} M in the encoder" if memory.encoder_parameters else ""
    return f"{memory.parameters / 1e6:.2f} M{encoder}"


def _flops(needs: Needs) -> str:
    model = flops_per_image(needs.config)
    again = needs.footprint.flops_per_sample / model - 1
    extras = ["what is computed again"] if needs.config.train.grad_checkpointing else []
    extras += [] if needs.config.distill.is_off else ["the teacher"]
    more = f", and {again:.0%} more for {' and '.join(extras)}" if extras else ""
    return f"{model / 1e9:.1f} G an image, forward and backward{more}"


def _micro_batches(needs: Needs) -> str:
    train = needs.config.train
    copies = ", copies included" if needs.config.augment.mode == "add" else ""
    return (
        f"batch {train.batch_size} in {train.accumulation_steps} micro-batches of {needs.footprint.micro_batch} "
        f"samples on each of {needs.world_size} processes{copies}"
    )


def _memory(memory: Footprint) -> str:
    by_purpose = {
        "weights": memory.weights_bytes,
        "teacher": memory.teacher_bytes,
        "gradients": memory.gradient_bytes,
        "optimizer": memory.optimizer_bytes,
        "average": memory.ema_bytes,
        "activations": memory.activation_bytes,
    }
    return ", ".join(f"{name} {_size(count)}" for name, count in by_purpose.items() if count)


def _peak(needs: Needs) -> str:
    peak = needs.footprint.peak_bytes
    if not needs.memory_bytes:
        return _size(peak)
    verdict = "fits" if fits(peak, needs.memory_bytes) else "does not fit"
    room = f"{SLACK:g} times that and {_size(RESERVE_BYTES)} for driver and libraries"
    return f"{_size(peak)}: {verdict} in {needs.memory_bytes / GB:g} GB ({room})"


def _evaluation(needs: Needs) -> str:
    peak = f"peak {_size(needs.footprint.eval_peak_bytes)}"
    if needs.config.data.fit != "crop":
        return peak
    each = bytes_per_pixel(needs.footprint.num_classes)
    if not needs.pictures:
        return f"{peak} for a batch of windows, and {_size(10**6 * each)} for each megapixel of a picture"
    height, width = max(needs.pictures, key=math.prod)
    return f"{peak} for a batch of windows, and {_size(height * width * each)} for a picture of {height} x {width} px"


def _at_most(needs: Needs) -> str:
    return ", where the search ends" if needs.largest == MOST_SAMPLES else ""


def _time(needs: Needs) -> str:
    train, forecast, device = needs.config.train, needs.forecast, needs.device
    images_per_s = train.batch_size / forecast.step_s
    samples = needs.split_sizes.get("train", 0)
    train_s, steps = samples / images_per_s, steps_per_epoch(samples, train.batch_size)
    windows = [num_windows(size, needs.config.data.size_px) for size in needs.pictures]
    eval_s = forecast.eval_s_per_sample * (fmean(windows) if windows else 1)
    val_s = needs.split_sizes.get("val", 0) * eval_s / needs.world_size
    flops = flops_per_image(needs.config)
    mfu = model_flops_utilization(train, flops, images_per_s, device.split(",")[0], needs.world_size)
    share = "" if mfu is None else f", MFU {mfu:.0%}"
    area = relative_area(needs.config, 0, AREA_STEPS, AREA_STEPS)
    smaller = f" ({_s(area * train_s)} in the mean, with smaller pictures)" if area < 1 else ""
    return (
        f"about {1e3 * forecast.step_s:.3g} ms a step, {images_per_s:.4g} images/s{share}; an epoch {_s(train_s)}"
        f"{smaller} and {_s(val_s)} of validation; {_run_time(train, steps, EpochTime(area * train_s, val_s))}"
    )


def _run_time(train: TrainConfig, steps_per_epoch: int, epoch: EpochTime) -> str:
    """The time of the whole run, in epochs, steps or minutes as its config counts."""
    if not steps_per_epoch:
        return "the shard set has no split train"
    epochs = epochs_of(train, steps_per_epoch, epoch)
    if train.budget_min:
        return f"about {round(epochs * steps_per_epoch)} steps ({epochs:.3g} epochs) in {train.budget_min:g} min"
    counted = f"{train.budget_steps} steps ({epochs:.3g} epochs)" if train.budget_steps else f"{train.epochs} epochs"
    return f"{duration(epoch.run_s(epochs))} for {counted}"


def _s(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
