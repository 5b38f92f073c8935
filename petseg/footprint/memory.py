"""What a step of training needs, without running it: its memory and its operations, from a step on fake tensors.

The step is that of petseg.training.step with everything that lives through it: weights, gradients, optimizer state,
averages, and what autograd keeps. Fake tensors have shapes, types and layouts, and no numbers: it takes a second and no
memory.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from petseg.config import RunConfig
from petseg.data.inputs import normalise, to_image
from petseg.footprint.operations import Op, OpCounter, num_bytes
from petseg.losses import ClassTerms, build_loss, distillation
from petseg.models.build import build_model
from petseg.models.checkpointing import checkpoint_stages
from petseg.models.encoders import encoder_parameters
from petseg.models.networks import build_networks, read_networks
from petseg.models.reflect import as_on_gpu
from petseg.optim import build_optimizer
from petseg.optim.ema import Ema

DeviceType = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Footprint:
    """What one process needs for a training step on `micro_batch` samples, and for a forward pass of evaluation."""

    micro_batch: int
    num_classes: int
    parameters: int
    encoder_parameters: int
    weights_bytes: int  # and buffers
    teacher_bytes: int  # the weights and buffers of distill.teacher, if there is one
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int  # alive after the forward pass beyond those: batch, logits, and what is kept for backward
    peak_bytes: int  # of the whole step
    eval_peak_bytes: int
    pass_ops: tuple[Op, ...]  # forward and backward
    update_ops: tuple[Op, ...]  # optimizer and average, once a step
    eval_ops: tuple[Op, ...]

    @property
    def flops_per_sample(self) -> float:
        """Forward and backward, with what checkpointing computes again."""
        return sum(op.flops for op in self.pass_ops) / self.micro_batch


def footprint(
    config: RunConfig, micro_batch: int, device: DeviceType, world_size: int = 1, num_classes: int = 2
) -> Footprint:
    """The footprint of a config whose passes take `micro_batch` samples (with their copies, in augment.mode "add").

    device: where it will run, which decides what autocast keeps in 32 bits
    Raises ValueError for a model that cannot be built.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        shapes = build_model(config.model, num_classes, config.data.image_size_px, pretrained=False)
        teacher = build_teacher(config, num_classes)
    with _without_numbers(device):
        model = _materialised(shapes, config.train.channels_last)
        if teacher:
            teacher = _materialised(teacher, config.train.channels_last)
        measured = measure_footprint(config, model, micro_batch, world_size, teacher)
    if device == "cuda" and world_size > 1 and config.train.cuda_graphs:
        # a graph writes its gradients, and petseg.optim.exchange averages them in memory of its own
        return replace(measured, peak_bytes=measured.peak_bytes + measured.gradient_bytes)
    return measured


def build_teacher(config: RunConfig, num_classes: int) -> nn.Module | None:
    """The network of distill.teacher with any weights, by the header of its file; None without one.

    Raises ValueError for a file that cannot be read.
    """
    if config.distill.is_off:
        return None
    networks = read_networks(Path(config.distill.teacher))
    return build_networks(networks, num_classes, config.data.image_size_px).requires_grad_(False).eval()


def measure_footprint(
    config: RunConfig, model: nn.Module, micro_batch: int, world_size: int = 1, teacher: nn.Module | None = None
) -> Footprint:
    """The footprint of a given model, on a CPU, where its step is run."""
    if config.train.grad_checkpointing:
        checkpoint_stages(model)
    optimizer = build_optimizer(config.optim, model)
    _fill_state(optimizer, model)
    ema = Ema(model) if config.train.averages_weights else None
    states = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    kept = {
        "weights_bytes": [*model.parameters(), *model.buffers()],
        "teacher_bytes": [*teacher.parameters(), *teacher.buffers()] if teacher else [],
        "optimizer_bytes": states,
        "ema_bytes": list(ema.tensors.values()) if ema else [],
    }
    if config.train.accumulates or world_size > 1:  # gradients outlive a pass; DDP keeps its buckets
        for parameter in _trained(model):
            parameter.grad = torch.zeros_like(parameter)
    held = [t for tensors in kept.values() for t in tensors] + [p.grad for p in _trained(model) if p.grad is not None]
    with OpCounter(held) as counter:
        activation_bytes = _pass(config, model, micro_batch, counter, teacher)
        pass_ops = len(counter.ops)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            ema.update(0.9)
    with OpCounter([t for tensors in kept.values() for t in tensors]) as evaluation:
        num_classes = _forward_only(config, model, micro_batch)
    return Footprint(
        micro_batch=micro_batch,
        num_classes=num_classes,
        parameters=sum(p.numel() for p in model.parameters()),
        encoder_parameters=sum(p.numel() for p in encoder_parameters(model)),
        gradient_bytes=num_bytes(_trained(model)),
        activation_bytes=activation_bytes,
        peak_bytes=counter.peak_bytes,
        eval_peak_bytes=evaluation.peak_bytes,
        pass_ops=tuple(counter.ops[:pass_ops]),
        update_ops=tuple(counter.ops[pass_ops:]),
        eval_ops=tuple(evaluation.ops),
        **{name: num_bytes(tensors) for name, tensors in kept.items()},
    )


def time_pass(
    config: RunConfig, model: nn.Module, samples: int, teacher: nn.Module | None = None
) -> tuple[float, float]:
    """Seconds of a training pass over so many samples on this CPU, and of a pass of evaluation."""
    began = time.perf_counter()
    _pass(config, model, samples, OpCounter(), teacher)
    trained = time.perf_counter()
    _forward_only(config, model, samples)
    return trained - began, time.perf_counter() - trained


def largest_batch(peak_bytes: Callable[[int], int], room_bytes: int, most: int) -> int:
    """The largest n in 1..most with peak_bytes(n) <= room_bytes, which grows with n; 0 if there is none.

    It asks a few times only: the peak is nearly a line through zero, which says where to look next.
    """
    fits, too_large, asked = 0, most + 1, most
    while too_large - fits > 1:
        peak = peak_bytes(asked)
        if peak <= room_bytes:
            fits = asked
        else:
            too_large = asked
        asked = min(max(asked * room_bytes // peak, fits + 1), too_large - 1)
    return fits


def grown_batch(config: RunConfig, samples: int) -> int:
    """Samples of a pass with the copies that augment.mode "add" gives them: seldom more (three standard deviations)."""
    augment = config.augment
    if augment.mode != "add" or augment.policy == "none":
        return samples
    p = augment.strong_p if augment.policy == "strong" else augment.p
    copies = samples * p + 3 * math.sqrt(samples * p * (1 - p))
    return samples + min(samples, math.ceil(copies))


def _pass(
    config: RunConfig, model: nn.Module, samples: int, counter: OpCounter, teacher: nn.Module | None = None
) -> int:
    """Forward and backward pass as in petseg.training.step; returns the bytes that live only between the two."""
    before = counter.live_bytes
    model.train()
    image, target = _batch(config, model, samples)
    with _autocast(config, image.device.type):
        with torch.no_grad():
            taught = teacher(image).float() if teacher else None
        logits = model(image)
    logits = logits.float()  # as accelerate does
    losses = build_loss(config.train, classes_of(logits))(logits, target)
    if taught is not None:
        losses = losses + distillation(logits, taught, target, config.distill.temperature)
    alive = counter.live_bytes - before
    losses.sum().backward()
    return alive


@torch.no_grad()
def _forward_only(config: RunConfig, model: nn.Module, samples: int) -> int:
    """A pass of evaluation; returns the model's number of classes."""
    model.eval()
    image, target = _batch(config, model, samples)
    with _autocast(config, image.device.type):
        logits = model(image)
    build_loss(config.train, classes_of(logits))(logits.float(), target)
    return logits.shape[1]


def _batch(config: RunConfig, model: nn.Module, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) float and (B, H, W) int64 as petseg.run makes them of uint8."""
    height, width = config.data.size_px
    device = next(model.parameters()).device
    image = to_image(torch.zeros(samples, height, width, 3, dtype=torch.uint8, device=device), device)
    target = torch.zeros(samples, height, width, dtype=torch.uint8, device=device).long()
    return normalise(image, config.train.channels_last), target


def classes_of(logits: torch.Tensor) -> ClassTerms:
    """All classes but the first, as if that were the background."""
    return ClassTerms(tuple(range(1, logits.shape[1])))


def _autocast(config: RunConfig, device: str) -> torch.autocast:
    precision = config.train.mixed_precision
    dtype = torch.bfloat16 if precision == "bf16" or device == "cpu" else torch.float16
    return torch.autocast(device, dtype, enabled=precision != "no")


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _fill_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Make the optimizer's state, which its first step would, without moving a weight."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in _trained(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _materialised(model: nn.Module, channels_last: bool) -> nn.Module:
    """The model, its tensors on the device meta replaced by fake ones that say they are on a CPU."""
    made: dict[int, Any] = {}  # a weight that two layers share stays one

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if channels_last and tensor.ndim == 4 else torch.contiguous_format
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").contiguous(memory_format=layout)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
    return model


@contextlib.contextmanager
def _without_numbers(device: DeviceType) -> Iterator[None]:
    """Tensors are fake. They say they are on a CPU, because autograd asks a GPU's driver for its streams."""
    with FakeTensorMode(), contextlib.ExitStack() as stack:
        if device == "cuda":
            stack.enter_context(_CudaPrecision())
            stack.enter_context(as_on_gpu())
        yield


class _CudaPrecision(TorchFunctionMode):
    """Normalisations and softmax in 32 bits under autocast, as on a GPU; on a CPU it leaves them as they come."""

    _IN_FULL = (F.layer_norm, F.group_norm, F.softmax, torch.softmax, torch.Tensor.softmax)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._IN_FULL or not torch.is_autocast_enabled("cpu"):
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(args[0].float(), *args[1:], **(kwargs or {}))
