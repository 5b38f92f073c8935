"""How training passes are carried out: checkpointed, with BatchNorm over all processes, compiled, under DDP."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from accelerate import Accelerator
from torch import nn

from petseg.config import RunConfig
from petseg.data.local_cache import cache_folder
from petseg.data.plan import steps_per_epoch
from petseg.models.checkpointing import checkpoint_stages
from petseg.models.layers import DoubleConv
from petseg.models.resnet34_unet import ResidualBlock

WORTHWHILE_STEPS = 5000  # a minute or two of compilation, in the first of many runs, against some ms of each step

MOST_BLOCK_SHAPES = 64  # of a kind of block, each compiled for itself; torch gives up after 8
REPEATED_BLOCKS = (DoubleConv, ResidualBlock)

Shape = tuple[int, ...]

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


def compile_forward(model: nn.Module, shapes: set[Shape], cache_dir: str) -> None:
    """Let a (bare) model's forward pass run compiled, in training and on pictures of these shapes (B, 3, H, W).

    Others, such as the last batch of an epoch, small pictures of progressive resizing and evaluation, run as before:
    nothing is compiled for them, and the names of parameters stay. The blocks of the lab's models are compiled one by
    one, and blocks of one kind and shape once. On a CPU that took about half of the time, and a step took no longer
    than with the whole compiled (LOG.md); it has not been measured on a GPU. Other models are compiled whole. Runs on
    a node share compiled code through the cache folder.
    """
    folder = cache_folder(cache_dir) / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_BLOCK_SHAPES)
    blocks: list[nn.Module] = [module for module in model.modules() if isinstance(module, REPEATED_BLOCKS)]
    compiled = _Switch()
    for part in blocks or [model]:
        _compile_part(part, compiled)
    plain = model.forward

    def forward(x: torch.Tensor) -> Any:
        compiled.on = model.training and tuple(x.shape) in shapes
        try:
            return plain(x)
        finally:
            compiled.on = False

    model.forward = forward
    logger.info("torch.compile for pictures of %s, kept in %s", sorted(shapes), folder)


@dataclass
class _Switch:
    """Whether the parts of a model run compiled just now."""

    on: bool = False


def _compile_part(part: nn.Module, compiled: _Switch) -> None:
    plain = part.forward
    fast: Callable[..., Any] = torch.compile(plain, dynamic=False)  # each shape is compiled for itself
    part.forward = lambda x: fast(x) if compiled.on else plain(x)


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
        compile_forward(model, {(size, 3, *config.data.size_px) for size in sizes}, config.data.cache_dir)
    if accelerator.ddp_handler is not None:
        # the graph is the same in each step; a pass whose gradients are not exchanged would be another one. On CPUs it
        # would group the gradients anew after a process's first step: see petseg.run.accelerator
        accelerator.ddp_handler.static_graph = on_gpu and train.accumulation_steps == 1
    return model
