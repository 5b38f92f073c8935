"""Into how many micro-batches a step is cut with `train.accumulation_steps` = 0: as few as the device's memory allows.

The number is fixed once in a run, by prediction and before anything is trained, and noted in overrides.json: all ranks
and all attempts use it, whatever device they run on. So BatchNorm, whose statistics are those of a micro-batch, sees
micro-batches of one size throughout. Where memory runs out even so, a retry doubles the number.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.layout import load_overrides, save_overrides

if TYPE_CHECKING:  # imported where it is used: torch's machinery of fake tensors takes a second
    from petseg.footprint.memory import DeviceType

ACCUMULATION_STEPS = "train.accumulation_steps"
# what the prediction leaves out: the driver's context, cuBLAS's and cuDNN's workspaces, and the allocator's gaps
RESERVE_BYTES = 2**30
SLACK = 1.1
CPU_MEMORY_SHARE = 0.5  # the rest is for the page cache and the loader
GIB = 2**30

logger = logging.getLogger(__name__)


def fits(peak_bytes: int, memory_bytes: int) -> bool:
    return SLACK * peak_bytes + RESERVE_BYTES <= memory_bytes


def usable_bytes(memory_bytes: int) -> int:
    """The largest predicted peak that fits."""
    return max(0, int((memory_bytes - RESERVE_BYTES) / SLACK))


def samples_per_micro_batch(config: RunConfig, micro_batches: int, world_size: int) -> int:
    """Samples of the largest micro-batch of a rank, with the copies of augment.mode "add"."""
    from petseg.footprint.memory import grown_batch

    share = -(-config.train.batch_size // world_size)
    return grown_batch(config, -(-share // micro_batches))


def fewest_micro_batches(
    config: RunConfig, device: DeviceType, memory_bytes: int, world_size: int, num_classes: int = 2
) -> int | None:
    """The smallest divisor of the batch whose micro-batches fit, None if no single sample does; takes some seconds."""
    from petseg.footprint.memory import footprint

    batch_size = config.train.batch_size
    smallest_seen = 0
    for count in (n for n in range(1, batch_size + 1) if batch_size % n == 0):
        samples = samples_per_micro_batch(config, count, world_size)
        if samples == smallest_seen:
            continue
        smallest_seen = samples
        candidate = with_values(config, {ACCUMULATION_STEPS: count})
        peak = footprint(candidate, samples, device, world_size, num_classes).peak_bytes
        logger.debug("%d micro-batches of %d samples would take %.2f GiB", count, samples, peak / GIB)
        if fits(peak, memory_bytes):
            return count
    return None


def settle_accumulation_steps(
    config: RunConfig, folder: Path, accelerator: Accelerator, num_classes: int = 2
) -> RunConfig:
    """The config with accumulation steps that all ranks agree on. Raises ValueError, on all ranks, if nothing fits."""
    if config.train.accumulation_steps:
        return config
    device: DeviceType = "cuda" if accelerator.device.type == "cuda" else "cpu"
    free = torch.tensor([free_bytes(accelerator.device)], dtype=torch.int64, device=accelerator.device)
    memory_bytes = int(accelerator.gather(free).min())
    steps = None
    if accelerator.is_main_process:
        overrides = load_overrides(folder)
        steps = overrides.get(ACCUMULATION_STEPS) or fewest_micro_batches(
            config, device, memory_bytes, accelerator.num_processes, num_classes
        )
        if steps and ACCUMULATION_STEPS not in overrides:
            folder.mkdir(parents=True, exist_ok=True)
            save_overrides(overrides | {ACCUMULATION_STEPS: steps}, folder)
            logger.info("%s = %d fits in %.1f GiB, by prediction", ACCUMULATION_STEPS, steps, memory_bytes / GIB)
    (steps,) = broadcast_object_list([steps])
    if steps is None:
        raise ValueError(
            f"not even a micro-batch of one sample fits in {memory_bytes / GIB:.1f} GiB, by prediction "
            "(python -m petseg.estimate): "
            "choose a smaller model.arch, model.width or data.image_size_px, or --train.grad-checkpointing"
        )
    return with_values(config, {ACCUMULATION_STEPS: steps})


def free_bytes(device: torch.device) -> int:
    """Memory that this process may take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what an earlier run in this process has left
        return torch.cuda.mem_get_info(device)[0]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(total * CPU_MEMORY_SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
