"""How much of the hardware a run uses: model FLOPs utilization on GPUs whose best is known, and memory."""

from __future__ import annotations

import functools
import resource

import torch

from petseg.config import RunConfig
from petseg.config.training import TrainConfig
from petseg.config.values import with_values
from petseg.footprint.hardware import CPU, find_gpu

MB = 1e6


def mfu_row(config: RunConfig, images_per_s: float, device: torch.device, world_size: int) -> dict[str, float]:
    """{"perf/mfu": ...}, or {} where the device's best is not known. The first call counts for a second or some.

    images_per_s: of full size; smaller ones count by their area
    """
    if device.type != "cuda" or find_gpu(name := torch.cuda.get_device_name(device)) is None:
        return {}
    share = model_flops_utilization(config.train, flops_per_image(config), images_per_s, name, world_size)
    assert share is not None
    return {"perf/mfu": share}


def model_flops_utilization(
    config: TrainConfig, flops: float, images_per_s: float, device: str, world_size: int
) -> float | None:
    """Share of what the devices can do at best that went into the model's arithmetic (Chowdhery et al. 2022, app. B).

    flops: of an image, forward and backward; images_per_s: of all processes together
    None for a device whose best is not known, such as a CPU.
    """
    gpu = find_gpu(device)
    if gpu is None:
        return None
    best_tflops = gpu.full_tflops if config.mixed_precision == "no" else gpu.half_tflops
    return flops * images_per_s / (best_tflops * 1e12 * world_size)


@functools.lru_cache
def flops_per_image(config: RunConfig) -> float:
    """Forward and backward, as torch's own layers compute them.

    It leaves out what a run's choices add: what checkpointing computes again, a teacher, and upsampling by products on
    a GPU.
    """
    from petseg.footprint.memory import footprint

    return footprint(
        with_values(config, {"train.grad_checkpointing": False, "distill.teacher": ""}), 2, "cpu"
    ).flops_per_sample


def device_name(device: torch.device) -> str:
    """For people: the name that a GPU's driver gives it, or the CPU with the threads of this process."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{CPU}, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> float:
    """The most that this process has held so far: of the GPU, by torch's allocator, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
