"""Gradient checkpointing (Chen et al. 2016): backward computes activations again instead of keeping them.

The numbers stay the same to the bit: the second computation sees the same inputs, and only the first one updates
BatchNorm's running statistics.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MOST_LAYERS = 8  # of a stage, such as a residual block, an inverted bottleneck, a transformer block, a decoder stage
Forward = Callable[..., Any]


def checkpoint_stages(model: nn.Module) -> list[str]:
    """In training, keep only the inputs of each stage of a (bare) model; parameter names stay. Returns the stages.

    A stage is an outermost module of two to MOST_LAYERS convolutions and linear layers.
    """
    stages = list(_stages(model, ""))
    for _, stage in stages:
        stage.forward = functools.partial(_run, stage, stage.forward)
    return [name for name, _ in stages]


def _stages(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    layers = sum(isinstance(m, nn.modules.conv._ConvNd | nn.Linear) for m in module.modules())
    is_container = isinstance(module, nn.ModuleList | nn.ModuleDict)  # never called
    if 2 <= layers <= MOST_LAYERS and not is_container:
        yield name, module
    elif layers >= 2:
        for child_name, child in module.named_children():
            yield from _stages(child, f"{name}.{child_name}" if name else child_name)


def _run(stage: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    if not (stage.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    # lists are copied, because a network may append to them meanwhile, as DenseNet does
    given = [list(arg) if isinstance(arg, list) else arg for arg in args]
    return checkpoint(
        forward,
        *given,
        use_reentrant=False,  # hooks and DDP work as without it
        preserve_rng_state=False,  # nothing is random: dropout is switched off
        context_fn=lambda: (contextlib.nullcontext(), _frozen_statistics(stage)),
        **kwargs,
    )


@contextlib.contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    """A context in which BatchNorm layers update copies of their running statistics."""
    norms = [m for m in stage.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
