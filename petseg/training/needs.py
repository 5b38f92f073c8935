"""What a run will need, without running it, and that as a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table

from petseg.config import RunConfig, TrainConfig
from petseg.config.values import with_values
from petseg.data.plan import steps_per_epoch
from petseg.data.store import read_manifest
from petseg.footprint.forecast import Forecast, forecast_on_cpu, forecast_on_gpu
from petseg.footprint.hardware import GPUS, Gpu, find_gpu
from petseg.footprint.memory import DeviceType, Footprint, footprint, largest_batch
from petseg.footprint.utilization import flops_per_image, model_flops_utilization
from petseg.run.length import EpochTime, epochs_of
from petseg.run.micro_batches import PASSES, RESERVE_BYTES, SLACK, fewest_passes, fits, samples_per_pass, usable_bytes
from petseg.run.resizing import relative_area
from petseg.training.probe import probe_step
from shards.terminal import duration

MOST_SAMPLES = 4096  # of a pass, where a search for the largest ends
AREA_STEPS = 1000  # over which the mean area of progressive resizing is taken
GIB, GB = 2**30, 1e9
SPLIT_SIZES = {"train": 3312, "val": 368}  # of the whole data set


@dataclass(frozen=True)
class Plan:
    """What was found for a config on a device."""

    config: RunConfig  # its passes settled
    world_size: int
    device: str
    memory_bytes: int  # of the device, 0 = not known
    found: Footprint
    forecast: Forecast
    largest: int | None  # samples that fit in a pass, with copies
    split_sizes: dict[str, int]


def make_plan(config: RunConfig, world_size: int, device: str, gpu_gb: float) -> Plan:
    """What a run needs on so many devices of that name, by default this machine's; gpu_gb: 0 = as its data sheet says.

    Raises ValueError for an unknown device, and where nothing fits.
    """
    gpu = choose_device(device)
    kind: DeviceType = "cuda" if gpu else "cpu"
    memory_bytes = int((gpu_gb or (gpu.memory_gb if gpu else 0)) * GB)
    if not config.train.accumulation_steps:
        passes = fewest_passes(config, kind, memory_bytes, world_size) if memory_bytes else 1
        if passes is None:
            raise ValueError(f"not even one sample a pass fits in {memory_bytes / GB:g} GB")
        config = with_values(config, {PASSES: passes})
    passes = config.train.accumulation_steps
    found = footprint(config, samples_per_pass(config, passes, world_size), kind, world_size)
    return Plan(
        config=config,
        world_size=world_size,
        device=f"{gpu.name}, {memory_bytes / GB:g} GB" if gpu else "this CPU",
        memory_bytes=memory_bytes,
        found=found,
        forecast=forecast(config, found, gpu, passes),
        largest=find_largest(config, kind, memory_bytes, world_size) if memory_bytes else None,
        split_sizes=split_sizes(config),
    )


def forecast(config: RunConfig, found: Footprint, gpu: Gpu | None, passes: int) -> Forecast:
    """The time of a step: measured where the device is this machine's, else by the GPU's data sheet."""
    if gpu is None:
        return forecast_on_cpu(config, found, passes)
    if not torch.cuda.is_available() or find_gpu(torch.cuda.get_device_name()) != gpu:
        return forecast_on_gpu(found, gpu, passes)
    try:
        probe = probe_step(config, found.micro_batch, torch.device("cuda"))
    except torch.cuda.OutOfMemoryError:
        return forecast_on_gpu(found, gpu, passes)
    return Forecast(passes * probe.step_s, probe.eval_s_per_sample, f"some steps on this {gpu.name}")


def choose_device(name: str) -> Gpu | None:
    """None for a CPU. Raises ValueError that lists the known GPUs."""
    if name.lower() == "cpu":
        return None
    if not name:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "H100"
    gpu = find_gpu(name)
    if gpu is None:
        raise ValueError(f"--device {name!r} is not known: choose cpu or one of {', '.join(g.name for g in GPUS)}")
    return gpu


def find_largest(config: RunConfig, kind: DeviceType, memory_bytes: int, world_size: int) -> int:
    """Samples of the largest pass that fits."""
    return largest_batch(
        lambda n: footprint(config, n, kind, world_size).peak_bytes, usable_bytes(memory_bytes), MOST_SAMPLES
    )


def split_sizes(config: RunConfig) -> dict[str, int]:
    """Samples of the splits of an epoch: those of the shard set, or of the whole data set if there is none yet."""
    try:
        manifest = read_manifest(config.data.shards, config.data.cache_dir, config.data.cache_gb)
    except (ValueError, OSError):
        return SPLIT_SIZES
    return {name: manifest.splits[name].num_samples for name in SPLIT_SIZES if name in manifest.splits}


def render(plan: Plan) -> Table:
    """A line per question."""
    config, model = plan.config, plan.config.model
    encoder = f" on {model.encoder}" if model.encoder else ""
    title = f"{model.arch}{encoder}, {config.data.image_size_px} px, mixed precision {config.train.mixed_precision}"
    table = Table(title=title, title_justify="left", show_header=False)
    for name, text in (
        ("device", f"{plan.world_size} x {plan.device}"),
        ("parameters", _parameters(plan.found)),
        ("FLOPs", _flops(plan)),
        ("a step", _passes(plan)),
        ("memory of a pass", _memory(plan.found)),
        ("its peak", _peak(plan)),
        ("evaluation", f"peak {_size(plan.found.eval_peak_bytes)}"),
        ("largest pass", "" if plan.largest is None else f"{plan.largest} samples{_at_most(plan)}"),
        ("time", _time(plan)),
        ("known by", plan.forecast.known_by),
    ):
        if text:
            table.add_row(name, text)
    return table


def _parameters(found: Footprint) -> str:
    encoder = f", {found.encoder_parameters / 1e6:.2f} M in the encoder" if found.encoder_parameters else ""
    return f"{found.parameters / 1e6:.2f} M{encoder}"


def _flops(plan: Plan) -> str:
    model = flops_per_image(plan.config)
    again = plan.found.flops_per_sample / model - 1
    checkpointed = f", and {again:.0%} more for what is computed again" if plan.config.train.grad_checkpointing else ""
    return f"{model / 1e9:.1f} G an image, forward and backward{checkpointed}"


def _passes(plan: Plan) -> str:
    train = plan.config.train
    copies = ", copies included" if plan.config.augment.mode == "add" else ""
    return (
        f"batch {train.batch_size} in {train.accumulation_steps} passes of {plan.found.micro_batch} samples "
        f"on each of {plan.world_size} processes{copies}"
    )


def _memory(found: Footprint) -> str:
    parts = {
        "weights": found.weights_bytes,
        "gradients": found.gradient_bytes,
        "optimizer": found.optimizer_bytes,
        "average": found.ema_bytes,
        "activations": found.activation_bytes,
    }
    return ", ".join(f"{name} {_size(count)}" for name, count in parts.items() if count)


def _peak(plan: Plan) -> str:
    peak = plan.found.peak_bytes
    if not plan.memory_bytes:
        return _size(peak)
    verdict = "fits" if fits(peak, plan.memory_bytes) else "does not fit"
    room = f"{SLACK:g} times that and {_size(RESERVE_BYTES)} for driver and libraries"
    return f"{_size(peak)}: {verdict} in {plan.memory_bytes / GB:g} GB ({room})"


def _at_most(plan: Plan) -> str:
    return ", where the search ends" if plan.largest == MOST_SAMPLES else ""


def _time(plan: Plan) -> str:
    train, forecast, device = plan.config.train, plan.forecast, plan.device
    images_per_s = train.batch_size / forecast.step_s
    samples = plan.split_sizes.get("train", 0)
    train_s, steps = samples / images_per_s, steps_per_epoch(samples, train.batch_size)
    val_s = plan.split_sizes.get("val", 0) * forecast.eval_s_per_sample / plan.world_size
    flops = flops_per_image(plan.config)
    mfu = model_flops_utilization(train, flops, images_per_s, device.split(",")[0], plan.world_size)
    share = "" if mfu is None else f", MFU {mfu:.0%}"
    area = relative_area(plan.config, 0, AREA_STEPS, AREA_STEPS)
    smaller = f" ({_s(area * train_s)} in the mean, with smaller pictures)" if area < 1 else ""
    return (
        f"about {1e3 * forecast.step_s:.3g} ms a step, {images_per_s:.4g} images/s{share}; an epoch {_s(train_s)}"
        f"{smaller} and {_s(val_s)} of validation; {_whole(train, steps, EpochTime(area * train_s, val_s))}"
    )


def _whole(train: TrainConfig, steps_per_epoch: int, epoch: EpochTime) -> str:
    """The whole run, by what its config counts in."""
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
