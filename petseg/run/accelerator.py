"""accelerate's Accelerator, built and checked: the processes that run together, and their precision."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from petseg.config import RunConfig
from petseg.footprint.gpus import require_gpus
from petseg.run.determinism import set_arithmetic

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> None:
    """Let malloc keep what tensors give back, for the next step: by itself it returns large blocks to the kernel.

    Every step then faults its pages in anew: 45,000 faults in a step of UNet (width 16, 16 pictures of 128 px), which
    without them takes 8 to 15 % less time. Does nothing where malloc is not glibc's.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def build_accelerator(config: RunConfig, world_size: int) -> Accelerator:
    """The process group and the precision. Raises ValueError if they are not what was asked for.

    Raises NodeFault, before the processes meet, where GPUs were given and this one sees none.
    """
    require_gpus()
    set_arithmetic(config)
    precision = config.train.mixed_precision
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher not in ("no", precision):
        raise ValueError(
            f"accelerate launch asks for mixed precision {launcher}, the run for {precision}: the run's config "
            f"decides, so give --train.mixed-precision {launcher} and leave it out of the launcher"
        )
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("train.mixed_precision = 'fp16' needs a GPU: use bf16 here")
    if not torch.cuda.is_available():
        keep_freed_memory()
    AcceleratorState._reset_state()  # one process may do several runs, and accelerate refuses a second precision
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # or several processes without a GPU would each train alone
        mixed_precision=precision,
        kwargs_handlers=[_ddp_settings()],
        step_scheduler_with_optimizer=False,
    )
    wanted = world_size or int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise ValueError(
            f"{accelerator.num_processes} processes run together where {wanted} were asked for: was the script "
            "started without its launcher, or with `accelerate launch --cpu`, which starts only one?"
        )
    if accelerator.num_processes > config.train.batch_size:
        raise ValueError(
            f"train.batch_size = {config.train.batch_size} is the batch of all {accelerator.num_processes} processes "
            "together: it must be at least as large as they are many"
        )
    return accelerator


def _ddp_settings() -> DistributedDataParallelKwargs:
    """On CPUs DDP keeps one layout of its gradients, so that a resumed run ends with the same bits.

    By itself it groups them anew after the first step of a process, by the order in which they came, and the sum of
    more than two ranks depends in its last bit on where in a group a number stands. It does not when it looks for
    unused parameters, which costs a CPU little, and of which there are none.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    return DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=on_cpu)
