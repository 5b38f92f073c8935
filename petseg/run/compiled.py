"""torch.compile for the training forward pass: when it pays, what it compiles, and where the compiled code is kept."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from petseg.config import RunConfig
from petseg.data.local_cache import cache_folder

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
