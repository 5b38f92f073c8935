"""One step of training: its micro-batches forward and backward, and the update of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import torch

from petseg.augment.batch import augment_batch
from petseg.config.sizes import Size
from petseg.data.loader import Batch
from petseg.data.transfer import floats
from petseg.losses import distillation
from petseg.metrics.pixels import count_pixels, picture_dice, picture_iou
from petseg.optim import set_learning_rate
from petseg.run.batches import to_device, to_inputs
from petseg.run.graphs import PassInputs
from petseg.run.parts import Parts
from petseg.run.resizing import shrink
from petseg.run.run import Run
from petseg.run.schedule import decay_at, image_size_px_at, learning_rate_at, update_at


def run_step(run: Run, epoch: int, step: int, micro_batches: Sequence[Batch], sums: torch.Tensor) -> None:
    """`train_step`, as the compiler's choice wants it, which may measure it or compile before it."""
    work = partial(train_step, run, epoch, step, micro_batches, sums)
    if run.choice is None:
        work()
        return
    config, progress = run.parts.config, run.progress
    full_size = image_size_px_at(config, progress, epoch, step) == config.data.size_px
    is_full = full_size and micro_batches[0].plan.step_samples == config.train.batch_size
    run.choice.run_step(work, is_full, progress.total_steps - progress.first_step(epoch) - step)


def train_step(run: Run, epoch: int, step: int, micro_batches: Sequence[Batch], sums: torch.Tensor) -> None:
    """Forward and backward over the micro-batches of a step, and the update of the weights that ends with it, if any.

    Adds samples, loss, Dice and IoU to `sums` (4,) without waiting for the device.
    """
    parts, config = run.parts, run.parts.config
    update = update_at(config, run.progress, epoch, step, len(parts.splits["train"]))
    updates = step + 1 == update.end
    set_learning_rate(parts.optimizer, learning_rate_at(config, run.progress, epoch, step))
    size_px = image_size_px_at(config, run.progress, epoch, step)
    if run.exchange and step == update.first:
        run.exchange.send_statistics()
    for batch in micro_batches:
        inputs = training_inputs(parts, batch, epoch, size_px, update.samples)
        sums += run.graphs.run(partial(training_pass, run, updates and batch.plan.last), inputs)
    if not updates:
        return
    if run.exchange:
        run.exchange.average_gradients()
    if config.optim.grad_clip:
        parts.accelerator.clip_grad_norm_(parts.model.parameters(), config.optim.grad_clip)
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    if parts.ema:
        parts.ema.update(decay_at(config, run.progress, epoch, update))


def training_inputs(parts: Parts, batch: Batch, epoch: int, size_px: Size, samples: int) -> PassInputs:
    """A micro-batch augmented, shrunk to size_px and normalised.

    Each sample counts 1 / (samples of the update over all ranks): DDP's mean over ranks is undone, so that neither a
    smaller last batch nor another world size changes its weight; a sample and its copy (augment.mode) share it.
    """
    config = parts.config
    image, classes = to_device(parts, batch)
    weight = batch.weight.to(parts.device, non_blocking=True)
    image, classes, weight = augment_batch(config, batch.plan.ids, epoch, image, classes, weight)
    if size_px != config.data.size_px:
        image, classes = shrink(image, classes, size_px)
    image, target = to_inputs(parts, image, classes)
    return PassInputs(image, target, weight, floats(parts.world_size / samples, parts.device))


def training_pass(run: Run, is_last: bool, inputs: PassInputs) -> torch.Tensor:
    """Forward and backward pass of a micro-batch: adds up the gradients, and returns the sums (4,) of train_step."""
    parts, pace = run.parts, run.pace
    ddp_waits = not is_last and run.exchange is None
    taught = teacher_logits(run, inputs.image)  # first: its activations are gone before the model's are kept
    with parts.accelerator.no_sync(parts.model) if ddp_waits else contextlib.nullcontext():
        with pace.stopped_until(parts.bare_model):
            model = parts.bare_model if run.exchange else parts.model
            logits = model(inputs.image)  # (B, K, H, W)
        losses = parts.loss(logits, inputs.target)  # (B,)
        if taught is not None:
            distill = parts.config.distill
            divergence = distillation(logits, taught, inputs.target, distill.temperature)
            losses = (1 - distill.weight) * losses + distill.weight * divergence
        loss = (losses * inputs.weight).sum() * inputs.scale
        with pace.stopped() if is_last else contextlib.nullcontext():
            parts.accelerator.backward(loss)
    counts = count_pixels(logits.detach(), inputs.target, parts.target.counted)
    columns = [torch.ones_like(losses), losses.detach(), picture_dice(counts), picture_iou(counts)]
    return torch.stack(columns).double() @ inputs.weight.double()


@torch.no_grad()
def teacher_logits(run: Run, image: torch.Tensor) -> torch.Tensor | None:
    """(B, K, H, W) float32 of the frozen teacher in the run's precision; None without one."""
    if run.teacher is None:
        return None
    with run.parts.accelerator.autocast():
        return run.teacher(image).float()
