"""The mean of the gradients over the processes, taken after the backward pass instead of within it as DDP does.

A CUDA graph of a training pass holds no communication then: a process that cannot capture it, or that meets a new shape
when the others do not, calls the same collectives in the same order as they. The exchange is not hidden behind the
backward pass, which costs some 1 ms a step between GPUs of one node (70 MB of unet's gradients over NVLink, estimated).
The numbers are DDP's: gradients are divided, then added up, and rank 0's running statistics are sent before a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


class GradientExchange:
    """Tensors are brought together in one piece of memory, so that each exchange is one collective, a few launches."""

    def __init__(self, model: nn.Module, world_size: int) -> None:
        """model: the (bare) one that is trained"""
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._statistics = [b for b in model.buffers() if b.is_floating_point()]
        self._world_size = world_size
        self._flat_gradients: _Flat | None = None
        self._flat_statistics = _Flat(self._statistics) if self._statistics else None

    @torch.no_grad()
    def send_statistics(self) -> None:
        """Give all processes rank 0's running statistics. Each process must call it."""
        if self._flat_statistics is None:
            return
        flat = self._flat_statistics
        torch._foreach_copy_(flat.views, self._statistics)
        dist.broadcast(flat.memory, src=0)
        torch._foreach_copy_(self._statistics, flat.views)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replace the gradients by their means over the processes, in other memory. Each process must call it."""
        trained = [p for p in self._parameters if p.grad is not None]
        gradients = [p.grad for p in trained if p.grad is not None]
        flat = self._flat_gradients
        if flat is None or not flat.fits(gradients):
            flat = self._flat_gradients = _Flat(gradients)
        torch._foreach_copy_(flat.views, gradients)
        flat.memory.div_(self._world_size)
        dist.all_reduce(flat.memory)
        for parameter, view in zip(trained, flat.views, strict=True):
            parameter.grad = view


class _Flat:
    """One piece of memory, and views of it in the layouts of some tensors."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        sizes = [tensor.numel() for tensor in tensors]
        self.memory = torch.zeros(sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
        self.views = [
            piece.as_strided(tensor.shape, tensor.stride())
            for piece, tensor in zip(self.memory.split(sizes), tensors, strict=True)
        ]

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        return [(t.shape, t.stride()) for t in tensors] == [(v.shape, v.stride()) for v in self.views]
