"""How training passes are carried out: checkpointed, with BatchNorm over all processes, compiled, under DDP."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from petseg.config import RunConfig
from petseg.data.plan import steps_per_epoch
from petseg.models.checkpointing import checkpoint_stages
from petseg.run.compiled import compile_forward, compile_wanted, full_pass_sizes


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
