"""How training passes are carried out: checkpointed, with BatchNorm over all processes, compiled, under DDP."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from petseg.config import RunConfig
from petseg.data.local_cache import cache_folder
from petseg.data.plan import steps_per_epoch
from petseg.models.checkpointing import checkpoint_stages

WORTHWHILE_STEPS = 5000  # a minute or two of compilation, in the first of many runs, against some ms of each step

logger = logging.getLogger(__name__)


def compile_wanted(config: RunConfig, device: torch.device, total_steps: int) -> bool:
    """Whether to compile. Raises ValueError if it was asked for and cannot be done here."""
    wish = config.train.compile
    if wish == "no":
        return False
    grows = config.augment.mode == "add" and config.augment.policy != "none"
    if wish == "auto":
        worthwhile = device.type == "cuda" and total_steps >= WORTHWHILE_STEPS and not grows
        return worthwhile and why_not_compile(device) is None
    if grows:
        raise ValueError(
            "train.compile = always: augment.mode = add makes batches of any size, and each would be compiled: "
            "leave one of the two out"
        )
    if why := why_not_compile(device):
        raise ValueError(f"train.compile = always: {why}, or leave it out")
    return True


def why_not_compile(device: torch.device) -> str | None:
    """What is missing, None if nothing is."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed: pip install triton"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler here, which torch.compile needs on a CPU: install g++ or set CXX"
    return None


def full_pass_sizes(batch_size: int, passes: int, rank: int, world_size: int) -> set[int]:
    """Samples of this rank's passes of a full batch: one number, or two that differ by one."""
    share = len(range(rank, batch_size, world_size))
    passes = min(passes, -(-batch_size // world_size))
    return {-(-share // passes), share // passes} - {0}


def compile_forward(model: nn.Module, sizes: set[int], cache_dir: str) -> None:
    """Let a (bare) model's forward pass run compiled, in training and on batches of these sizes.

    Others, such as the last one of an epoch and those of evaluation, run as before: nothing is compiled for them, and
    the names of parameters stay. Compiled code is shared by all runs of a node through the cache folder.
    """
    folder = cache_folder(cache_dir) / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    plain = model.forward
    # static: each size is compiled for itself, and there are two at most
    fast: Callable[..., Any] = torch.compile(plain, dynamic=False)

    def forward(x: torch.Tensor) -> Any:
        return fast(x) if model.training and len(x) in sizes else plain(x)

    model.forward = forward
    logger.info("torch.compile for passes of %s samples, kept in %s", sorted(sizes), folder)


def fit_for_training(config: RunConfig, model: nn.Module, accelerator: Accelerator, num_samples: int) -> nn.Module:
    """The (bare) model as the config wants it carried out, before accelerate wraps it; the names of parameters stay.

    num_samples: of the train split
    Raises ValueError for what was asked for and cannot be done here.
    """
    train, rank, world_size = config.train, accelerator.process_index, accelerator.num_processes
    on_gpu = accelerator.device.type == "cuda"
    if train.sync_batchnorm and world_size > 1:
        if not on_gpu:
            raise ValueError(
                f"train.sync_batchnorm works on GPUs only, and these {world_size} processes have none: leave it out"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if train.grad_checkpointing:
        checkpoint_stages(model)
    total_steps = train.budget_steps or steps_per_epoch(num_samples, train.batch_size) * train.epochs
    if compile_wanted(config, accelerator.device, total_steps):
        sizes = full_pass_sizes(train.batch_size, train.accumulation_steps, rank, world_size)
        compile_forward(model, sizes, config.data.cache_dir)
    if accelerator.ddp_handler is not None:
        # the graph is the same in each step; a pass whose gradients are not exchanged would be another one. On CPUs it
        # would group the gradients anew after a process's first step: see petseg.run.accelerator
        accelerator.ddp_handler.static_graph = on_gpu and train.accumulation_steps == 1
    return model
