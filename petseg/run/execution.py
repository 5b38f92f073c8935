"""How training passes are carried out: checkpointed, with BatchNorm over all processes, compiled, under DDP."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from torch import nn

from petseg.config import RunConfig
from petseg.models.checkpointing import checkpoint_stages
from petseg.run.compiling.forward import CompiledForward, compile_forward, why_not_compile

logger = logging.getLogger(__name__)


def why_no_choice(config: RunConfig, device: torch.device) -> str | None:
    """Why train.compile = auto leaves a run as it is without measuring; None if it measures."""
    if device.type != "cuda":
        return "there is no GPU, and on CPUs compiling was slower"
    if config.train.deterministic:
        return "train.deterministic promises the same bits, and a clock would decide: choose always or no"
    if config.train.budget_min:
        return "train.budget_min takes the run's length from the speed of its first epoch: choose always or no"
    if _grows(config):
        return "augment.mode = add makes batches of any size"
    return why_not_compile(device)


def require_compilable(config: RunConfig, device: torch.device) -> None:
    """Raises ValueError for train.compile = always where it cannot be done."""
    if _grows(config):
        raise ValueError(
            "train.compile = always: augment.mode = add makes batches of any size, and each would be compiled: "
            "leave one of the two out"
        )
    if why := why_not_compile(device):
        raise ValueError(f"train.compile = always: {why}, or leave it out")


def _grows(config: RunConfig) -> bool:
    return config.augment.mode == "add" and config.augment.policy != "none"


def full_pass_sizes(batch_size: int, passes: int, rank: int, world_size: int) -> set[int]:
    """Samples of this rank's passes of a full batch: one number, or two that differ by one."""
    share = len(range(rank, batch_size, world_size))
    passes = min(passes, -(-batch_size // world_size))
    return {-(-share // passes), share // passes} - {0}


def fit_for_training(config: RunConfig, model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The (bare) model as the config wants it carried out, before accelerate wraps it; the names of parameters stay.

    Raises ValueError for what was asked for and cannot be done here.
    """
    train, world_size = config.train, accelerator.num_processes
    on_gpu = accelerator.device.type == "cuda"
    if train.sync_batchnorm and world_size > 1:
        if not on_gpu:
            raise ValueError(
                f"train.sync_batchnorm works on GPUs only, and these {world_size} processes have none: leave it out"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if train.grad_checkpointing:
        checkpoint_stages(model)
    if accelerator.ddp_handler is not None:
        # the graph is the same in each step; a pass whose gradients are not exchanged would be another one. On CPUs it
        # would group the gradients anew after a process's first step: see petseg.run.accelerator
        accelerator.ddp_handler.static_graph = on_gpu and not train.accumulates
    return model


def compile_for_training(config: RunConfig, model: nn.Module, accelerator: Accelerator) -> CompiledForward | None:
    """Prepare a (bare, fitted) model to be compiled, before accelerate wraps it; None if the run stays as it is.

    Raises ValueError if compilation was asked for and cannot be done here.
    """
    train, device = config.train, accelerator.device
    if train.compile == "no":
        return None
    if train.compile == "always":
        require_compilable(config, device)
    elif why := why_no_choice(config, device):
        logger.info("train.compile = auto: the run is not compiled: %s", why)
        return None
    sizes = full_pass_sizes(
        train.batch_size, train.accumulation_steps, accelerator.process_index, accelerator.num_processes
    )
    return compile_forward(
        model, {(size, 3, *config.data.size_px) for size in sizes}, config.data.cache_dir, enabled=False
    )
