"""Into how many passes a step is cut with `train.accumulation_steps` = 0: as few as the device's memory allows.

It is settled once in a run, by prediction and before anything is trained, and noted in overrides.json: all ranks and
all lives of the run take the same, on whatever device they go on. So BatchNorm, whose statistics are those of a pass,
sees passes of one size throughout. Where memory runs out even so, a retry doubles the noted number.
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

PASSES = "train.accumulation_steps"
# what the prediction does not see: the driver's context, cuBLAS's and cuDNN's workspaces, and the allocator's gaps
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


def samples_per_pass(config: RunConfig, passes: int, world_size: int) -> int:
    """Of the largest pass of a rank, with copies."""
    from petseg.footprint.memory import grown_batch

    share = -(-config.train.batch_size // world_size)
    return grown_batch(config, -(-share // passes))


def fewest_passes(config: RunConfig, device: DeviceType, memory_bytes: int, world_size: int) -> int | None:
    """The smallest divisor of the batch whose passes fit; None if single samples do not. Some seconds long."""
    from petseg.footprint.memory import footprint

    batch_size = config.train.batch_size
    smallest_seen = 0
    for passes in (n for n in range(1, batch_size + 1) if batch_size % n == 0):
        samples = samples_per_pass(config, passes, world_size)
        if samples == smallest_seen:
            continue
        smallest_seen = samples
        asked = with_values(config, {PASSES: passes})
        peak = footprint(asked, samples, device, world_size).peak_bytes
        logger.debug("%d passes of %d samples would take %.2f GiB", passes, samples, peak / GIB)
        if fits(peak, memory_bytes):
            return passes
    return None


def settle_passes(config: RunConfig, folder: Path, accelerator: Accelerator) -> RunConfig:
    """The config with its number of passes, which all ranks agree on. Raises ValueError, on all, if nothing fits."""
    if config.train.accumulation_steps:
        return config
    device: DeviceType = "cuda" if accelerator.device.type == "cuda" else "cpu"
    free = torch.tensor([free_bytes(accelerator.device)], dtype=torch.int64, device=accelerator.device)
    memory_bytes = int(accelerator.gather(free).min())
    passes = None
    if accelerator.is_main_process:
        overrides = load_overrides(folder)
        passes = overrides.get(PASSES) or fewest_passes(config, device, memory_bytes, accelerator.num_processes)
        if passes and PASSES not in overrides:
            folder.mkdir(parents=True, exist_ok=True)
            save_overrides(overrides | {PASSES: passes}, folder)
            logger.info("%s = %d fits in %.1f GiB, by prediction", PASSES, passes, memory_bytes / GIB)
    (passes,) = broadcast_object_list([passes])
    if passes is None:
        raise ValueError(
            f"not even one sample a pass fits in {memory_bytes / GIB:.1f} GiB, by prediction "
            "(python -m petseg.estimate): "
            "choose a smaller model.arch, model.width or data.image_size_px, or --train.grad-checkpointing"
        )
    return with_values(config, {PASSES: passes})


def free_bytes(device: torch.device) -> int:
    """Memory that this process may take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of an earlier run in this process
        return torch.cuda.mem_get_info(device)[0]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(total * CPU_MEMORY_SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
