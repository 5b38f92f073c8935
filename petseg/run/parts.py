"""The parts of a run, which each process builds once and then only uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from petseg.config import RunConfig
from petseg.data.split import SplitData, open_splits
from petseg.data.store import Store
from petseg.losses import ClassTerms, Loss, build_loss
from petseg.models.build import build_model
from petseg.optim import build_optimizer
from petseg.optim.ema import Ema
from petseg.run.accelerator import build_accelerator
from petseg.run.compiling.forward import CompiledForward
from petseg.run.execution import compile_for_training, fit_for_training
from petseg.run.micro_batches import settle_accumulation_steps
from petseg.run.resizing import require_sizes
from petseg.run_folder.checkpoint import Learner
from petseg.targets.class_weights import class_weights
from petseg.targets.target import Target, resolve_target
from shards.command import without_secrets
from shards.manifest import Manifest


@dataclass(frozen=True)
class Parts:
    """Model, optimizer and data of one process: all of a run that evaluation needs."""

    config: RunConfig
    folder: Path
    store: Store
    splits: Mapping[str, SplitData]
    accelerator: Accelerator
    model: nn.Module  # as accelerate wraps it (DDP, autocast)
    bare_model: nn.Module  # for evaluation and checkpoints
    optimizer: Any  # torch.optim.Optimizer as accelerate wraps it
    loss: Loss
    target: Target
    tables: Mapping[str, torch.Tensor]  # the target's (R, 256) uint8 by rule, on the device
    compiled: CompiledForward | None  # of the bare model, if train.compile asks for it and it can be had
    ema: Ema | None  # averages that are measured and kept in place of the weights, where the config asks for them

    @property
    def manifest(self) -> Manifest:
        return self.store.manifest

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    @property
    def learner(self) -> Learner:
        """What checkpoints save and restore."""
        return Learner(self.bare_model, self.optimizer, self.ema)

    @property
    def eval_batch_size(self) -> int:
        """Samples of one forward pass in evaluation: as many as in training, which are known to fit."""
        return -(-self.config.train.batch_size // (self.world_size * self.config.train.accumulation_steps))

    def float_buffers(self) -> list[torch.Tensor]:
        """BatchNorm's running statistics and their averages, which differ between ranks within an epoch; or []."""
        own = [b for b in self.bare_model.buffers() if b.is_floating_point()]
        return [*own, *(self.ema.buffers() if self.ema else [])]

    def sync_buffers(self) -> None:
        """Average BatchNorm's running statistics over the ranks, so that all evaluate and save the same model."""
        buffers = self.float_buffers()
        if self.world_size == 1 or not buffers:
            return
        mean = self.accelerator.reduce(nn.utils.parameters_to_vector(buffers), reduction="mean")
        nn.utils.vector_to_parameters(mean, buffers)

    def close(self) -> None:
        for split in self.splits.values():
            split.tars.close()
        self.store.close()
        self.accelerator.end_training()


def build_parts(
    config: RunConfig, store: Store, folder: Path, world_size: int = 0, splits: Sequence[str] = ("train", "val")
) -> Parts:
    """Build a model with fresh weights and its optimizer, and open some splits, decoded in advance as data.cache says.

    world_size: number of processes that there must be, 0 = any
    Raises ValueError for a split without samples, and if the config asks for what this machine cannot do.
    """
    store.manifest.require_samples(splits, without_secrets(config.data.shards))
    target = resolve_target(config.data, store, folder)
    accelerator = build_accelerator(config, world_size)
    # before the accumulation steps are chosen: samples on the GPU leave less memory for micro-batches
    opened = open_splits(config, store, splits, accelerator.device)
    if target.kinds:
        opened = {name: replace(split, rows=target.rows_of(split.keys())) for name, split in opened.items()}
    config = settle_accumulation_steps(config, folder, accelerator, len(target))
    set_seed(config.train.seed)
    # without pretrained weights: a resumed run has its weights in a checkpoint
    bare_model = build_model(config.model, len(target), config.data.image_size_px, pretrained=False)
    bare_model = bare_model.to(accelerator.device)
    if config.train.channels_last:
        bare_model = bare_model.to(memory_format=torch.channels_last)
    compiled = None
    if "train" in splits:
        require_sizes(config, bare_model)
        bare_model = fit_for_training(config, bare_model, accelerator)
        compiled = compile_for_training(config, bare_model, accelerator)
    # the loader is not prepared: it splits by rank itself, and accelerate would silently drop samples
    # placement is named: to find it out, accelerate would import torch.distributed.tensor and sympy
    model, optimizer = accelerator.prepare(
        bare_model, build_optimizer(config.optim, bare_model), device_placement=[True, True]
    )
    return Parts(
        config=config,
        folder=folder,
        store=store,
        splits=opened,
        accelerator=accelerator,
        model=model,
        bare_model=bare_model,
        optimizer=optimizer,
        loss=build_loss(config.train, class_terms(config, target, store.manifest, accelerator.device)),
        target=target,
        tables={name: torch.from_numpy(table).to(accelerator.device) for name, table in target.rules.items()},
        compiled=compiled,
        ema=Ema(bare_model) if config.train.averages_weights else None,
    )


def class_terms(config: RunConfig, target: Target, manifest: Manifest, device: torch.device) -> ClassTerms:
    """How the target's classes enter the loss; raises ValueError for weights that do not fit them."""
    weights = class_weights(config.train.class_weights, target, manifest)
    return ClassTerms(target.counted, None if weights is None else torch.from_numpy(weights).to(device))
