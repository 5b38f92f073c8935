"""A run's living parts: built once, resumed from the newest checkpoint, closed at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from petseg.accelerator import build_accelerator
from petseg.augment import apply, draw, with_copies
from petseg.config import RunConfig
from petseg.data.inputs import build_target, normalise, to_image
from petseg.data.ledger import Count
from petseg.data.loader import Batch
from petseg.data.places import without_secrets
from petseg.data.plan import EpochOrder, MicroBatch, eval_plan, steps_per_epoch, train_plan
from petseg.data.split import SplitData, open_splits
from petseg.data.store import Store
from petseg.ema import Ema
from petseg.energy import open_meter
from petseg.execution import fit_for_training
from petseg.lives import Life, require_newest
from petseg.losses import Loss, build_loss
from petseg.models import build_model
from petseg.optim import build_optimizer, learning_rate
from petseg.pace import Pace
from petseg.passes import settle_passes
from petseg.resizing import relative_area, require_sizes, shrink, size_px
from shards.manifest import Manifest


@dataclass(frozen=True)
class EpochSoFar:
    """What all ranks together did of an epoch that was interrupted."""

    steps: int = 0  # finished optimizer steps
    sums: tuple[tuple[float, ...], ...] = ()  # of each rank: samples, and their loss, Dice and IoU
    count: Count = field(default_factory=Count)
    seconds: float = 0.0
    waited_s: float = 0.0

    def sums_of(self, rank: int, world_size: int) -> tuple[float, ...]:
        """What a rank starts from: its own sums, or on another number of ranks all of them on rank 0.

        Its own, because floating-point sums depend on their order: a resumed run ends with the very same numbers.
        """
        if len(self.sums) == world_size:
            return self.sums[rank]
        return tuple(sum(column) for column in zip(*self.sums, strict=True)) if self.sums and rank == 0 else (0.0,) * 4


@dataclass
class Run:
    """Everything that lives as long as one process of a run."""

    config: RunConfig
    store: Store
    folder: Path
    accelerator: Accelerator
    model: nn.Module  # as accelerate wraps it (DDP, autocast)
    bare_model: nn.Module  # for evaluation and checkpoints
    optimizer: Any  # torch.optim.Optimizer as accelerate wraps it
    loss: Loss
    splits: dict[str, SplitData]
    ema: Ema | None = None  # the averaged weights that are measured and kept, if train.ema_decay asks for them
    epoch: int = 0  # finished epochs
    so_far: EpochSoFar = EpochSoFar()  # of the next one
    life: Life | None = None  # on the main process
    saved_at: float = field(default_factory=time.monotonic)
    best: dict[str, Any] = field(default_factory=lambda: {"step": 0, "epoch": 0, "val/dice": -1.0})

    def __post_init__(self) -> None:
        self.manifest: Manifest = self.store.manifest
        self.energy = open_meter(self.accelerator.device)
        self.pace = Pace(enabled=self.world_size > 1 and self.accelerator.device.type == "cpu")
        num_samples = self.manifest.splits["train"].num_samples if "train" in self.splits else 0
        self.steps_per_epoch = steps_per_epoch(num_samples, self.config.train.batch_size)
        # with train.budget_min the first epoch shows what it is
        self.total_steps = self.config.train.budget_steps or self.steps_per_epoch * self.config.train.epochs

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    @property
    def eval_batch_size(self) -> int:
        """Samples of one forward pass of evaluation: as many as in training, which is known to fit."""
        return -(-self.config.train.batch_size // (self.world_size * self.config.train.accumulation_steps))

    @property
    def done_steps(self) -> int:
        """Optimizer steps since the start of the run."""
        return min(self.epoch * self.steps_per_epoch + self.so_far.steps, self.total_steps)

    @property
    def epochs(self) -> int:
        """Of the whole run, the last of which may have fewer steps."""
        return -(-self.total_steps // self.steps_per_epoch)

    def steps_of(self, epoch: int) -> int:
        """Optimizer steps of an epoch (from 1)."""
        return min(self.steps_per_epoch, self.total_steps - (epoch - 1) * self.steps_per_epoch)

    def fit_budget(self, steps: int, seconds: float, validation_s: float = 0.0) -> None:
        """With `train.budget_min`: as many steps in all as fit at the pace of the first ones, which took so long.

        What a step costs grows with the area of its pictures (petseg.resizing); a validation comes with each epoch.
        """
        if minutes := self.config.train.budget_min:
            area = relative_area(self.config, 0, steps, self.total_steps)
            full_step_s = seconds / (steps * area)
            mean_step_s = full_step_s * relative_area(self.config, 0, self.total_steps, self.total_steps)
            self.total_steps = max(steps, int(60 * minutes / (mean_step_s + validation_s / self.steps_per_epoch)))

    def image_size_px(self, epoch: int, step: int) -> int:
        """Side of the pictures in a step of an epoch (from 1)."""
        return size_px(self.config, (epoch - 1) * self.steps_per_epoch + step, self.total_steps)

    def relative_area(self, epoch: int) -> float:
        """Mean area of an epoch's pictures, as a share of the full one."""
        first = (epoch - 1) * self.steps_per_epoch
        return relative_area(self.config, first, first + self.steps_of(epoch), self.total_steps)

    def learning_rate(self, epoch: int, step: int) -> float:
        return learning_rate(self.config.optim, (epoch - 1) * self.steps_per_epoch + step, self.total_steps)

    def order(self, epoch: int) -> EpochOrder:
        """The order of the train split in an epoch (from 1)."""
        sizes = self.splits["train"].tars.shard_sizes
        return EpochOrder(sizes, self.config.data.shuffle_window_shards, self.config.train.seed, epoch)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch (from 1), in the order of the plan."""
        train, data, order = self.config.train, self.splits["train"], self.order(epoch)
        plan = train_plan(order, train.batch_size, train.accumulation_steps, self.rank, self.world_size, first_step)
        return data.batches(data.announced(plan, order, train.batch_size), pin=self.pin)

    def eval_batches(self, split: str) -> Iterator[Batch]:
        """This rank's batches of a split, each sample once over all ranks."""
        data = self.splits[split]
        first, end = (len(data) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        data.tars.prefetch(data.tars.shards_of(first, end))
        return data.batches(eval_plan(len(data), self.eval_batch_size, self.rank, self.world_size), pin=self.pin)

    def batches_of(self, split: str, positions: Iterable[int]) -> Iterator[Batch]:
        """Single samples of a split, one a batch."""
        plan = (MicroBatch(np.array([p], np.int64), step=0, step_samples=1, last=True) for p in positions)
        return self.splits[split].batches(plan, pin=self.pin)

    @property
    def pin(self) -> bool:
        return self.accelerator.device.type == "cuda"

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch on the device: image (B, 3, H, W) float, target (B, H, W) int64."""
        return self._normalised(*self._raw(batch))

    def train_inputs(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, augmented and sized as in an epoch (from 1), and the samples' weights (B,); mode "add" has more."""
        config, augment = self.config, self.config.augment
        (image, trimap), weight = self._raw(batch), batch.weight.to(self.accelerator.device, non_blocking=True)
        changes = draw(augment, batch.plan.ids, config.train.seed, epoch, config.data.image_size_px)
        if augment.mode == "add":
            image, trimap, weight = with_copies(changes, image, trimap, weight, augment)
        else:
            image, trimap = apply(changes, image, trimap, augment)
        side_px = self.image_size_px(epoch, batch.plan.step)
        if side_px < config.data.image_size_px:
            image, trimap = shrink(image, trimap, side_px)
        return *self._normalised(image, trimap), weight

    def _raw(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.accelerator.device
        return to_image(batch.image, device), batch.trimap.to(device, non_blocking=True)

    def _normalised(self, image: torch.Tensor, trimap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        target = build_target(trimap, self.config.data.border, self.manifest.source.trimap)
        return normalise(image, self.config.train.channels_last), target

    def float_buffers(self) -> list[torch.Tensor]:
        """BatchNorm's running statistics and their averages, which differ between ranks within an epoch; maybe none."""
        own = [b for b in self.bare_model.buffers() if b.is_floating_point()]
        return [*own, *(self.ema.buffers() if self.ema else [])]

    def sync_buffers(self) -> None:
        """Average BatchNorm's running statistics over the ranks, so that all evaluate and save the same model."""
        buffers = self.float_buffers()
        if self.world_size == 1 or not buffers:
            return
        mean = self.accelerator.reduce(nn.utils.parameters_to_vector(buffers), reduction="mean")
        nn.utils.vector_to_parameters(mean, buffers)

    @property
    def save_due(self) -> bool:
        """Whether the last save is longer ago than `train.save_every_min`."""
        every_s = 60 * self.config.train.save_every_min
        return bool(every_s) and time.monotonic() - self.saved_at >= every_s

    def require_newest(self) -> None:
        """Raises Interrupted on the main process of a run that another process has taken over; called before writes."""
        if self.life is not None:
            require_newest(self.folder, self.life)

    def close(self) -> None:
        for split in self.splits.values():
            split.tars.close()
        self.store.close()
        self.accelerator.end_training()


def build_run(
    config: RunConfig, store: Store, folder: Path, world_size: int = 0, splits: Sequence[str] = ("train", "val")
) -> Run:
    """Model with fresh weights, optimizer, and the samples of some splits, decoded beforehand if that pays.

    world_size: how many processes there must be, 0 = any.
    Raises ValueError for a split without samples, and for what the config asks for and this machine cannot do.
    """
    store.manifest.require_samples(splits, without_secrets(config.data.shards))
    accelerator = build_accelerator(config, world_size)
    # before the passes are settled: samples on the GPU leave them less memory
    opened = open_splits(config, store, splits, accelerator.device)
    config = settle_passes(config, folder, accelerator)
    set_seed(config.train.seed)
    # without the weights that an encoder starts from: a run that goes on has them in its checkpoint
    bare_model = build_model(config.model, image_size_px=config.data.image_size_px, pretrained=False)
    bare_model = bare_model.to(accelerator.device)
    if config.train.channels_last:
        bare_model = bare_model.to(memory_format=torch.channels_last)
    if "train" in splits:
        require_sizes(config, bare_model)
        bare_model = fit_for_training(config, bare_model, accelerator, len(opened["train"]))
    # the loader is never prepared: accelerate would silently drop samples of one that splits by rank itself
    model, optimizer = accelerator.prepare(bare_model, build_optimizer(config.optim, bare_model))
    ema = Ema(bare_model, config.train.ema_decay) if config.train.ema_decay else None
    loss = build_loss(config.train)
    return Run(config, store, folder, accelerator, model, bare_model, optimizer, loss, opened, ema)
