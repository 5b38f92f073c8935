"""The batches of a run: read in the order of a plan, and turned into tensors on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from petseg.data.inputs import normalise, to_classes, to_image
from petseg.data.loader import Batch
from petseg.data.plan import Batching, EpochOrder, Ids, MicroBatch, eval_plan, train_plan
from petseg.data.transfer import indices
from petseg.data.whole.crops import Crops
from petseg.run.parts import Parts

Pair = tuple[torch.Tensor, torch.Tensor]


def epoch_order(parts: Parts, epoch: int) -> EpochOrder:
    """The order of the train split in an epoch (from 1)."""
    sizes = parts.splits["train"].tars.shard_sizes
    return EpochOrder(sizes, parts.config.data.shuffle_window_shards, parts.config.train.seed, epoch)


def train_batches(parts: Parts, epoch: int, first_step: int = 0) -> Iterator[Batch]:
    """This rank's micro-batches of an epoch (from 1), in the order of the plan."""
    train, data, order = parts.config.train, parts.splits["train"], epoch_order(parts, epoch)
    batching = Batching(train.batch_size, train.accumulation_steps, parts.rank, parts.world_size)
    plan = train_plan(order, batching, first_step)
    ahead = data.prefetched(plan, order, train.batch_size)
    if parts.config.data.fit == "crop":
        crops = Crops(parts.config.data.size_px, train.seed, epoch, parts.config.data.rare_crops)
        return data.crops(ahead, crops, pin=_pins(parts))
    return data.batches(ahead, pin=_pins(parts))


def take_step(batches: Iterator[Batch]) -> list[Batch]:
    """The micro-batches of the next optimizer step."""
    step = [next(batches)]
    while not step[-1].plan.last:
        step.append(next(batches))
    return step


def eval_batches(parts: Parts, split: str) -> Iterator[Batch]:
    """This rank's batches of a split, each sample once over all ranks; with data.fit crop, single whole pictures."""
    data = parts.splits[split]
    first, end = (len(data) * rank // parts.world_size for rank in (parts.rank, parts.rank + 1))
    data.tars.prefetch(data.tars.shards_of(first, end))
    plan = eval_plan(len(data), parts.eval_batch_size, parts.rank, parts.world_size)
    return data.batches(plan, pin=_pins(parts))


def batches_at(parts: Parts, split: str, positions: Iterable[int]) -> Iterator[Batch]:
    """Single samples of a split, one in each batch."""
    plan = (MicroBatch(np.array([p], np.int64), step=0, step_samples=1, last=True) for p in positions)
    return parts.splits[split].batches(plan, pin=_pins(parts))


def to_device(parts: Parts, batch: Batch) -> Pair:
    """Pictures (B, 3, H, W) float32 in 0-255 and their classes (B, H, W) uint8 on the device."""
    labels = batch.labels.to(parts.device, non_blocking=True)
    return to_image(batch.image, parts.device), classes_by(parts, parts.target.rule, labels, batch.rows)


def classes_by(parts: Parts, rule: str, labels: torch.Tensor, rows: Ids | None) -> torch.Tensor:
    """(B, H, W) uint8 labels on the device -> their classes by a rule of the target; `rows` are Batch.rows."""
    return to_classes(labels, parts.tables[rule], None if rows is None else indices(rows, parts.device))


def to_inputs(parts: Parts, image: torch.Tensor, classes: torch.Tensor) -> Pair:
    """Inputs of model and loss: normalised pictures (B, 3, H, W), and the target (B, H, W) int64."""
    return normalise(image, parts.config.train.channels_last), classes.long()


def eval_inputs(parts: Parts, batch: Batch) -> Pair:
    """A batch without augmentation: pictures (B, 3, H, W) float32, target (B, H, W) int64."""
    return to_inputs(parts, *to_device(parts, batch))


def _pins(parts: Parts) -> bool:
    return parts.device.type == "cuda"
