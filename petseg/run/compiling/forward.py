"""A model's forward pass that runs compiled in training, on full batches of full-size pictures, once it is enabled."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petseg.data.local_cache import cache_folder
from petseg.models.layers import DoubleConv
from petseg.models.resnet34_unet import ResidualBlock
from petseg.run.compiling.artifacts import SharedArtifacts, compiled_anew, first_on_the_node, use_folder
from petseg.run.graphs import untouched

MOST_BLOCK_SHAPES = 64  # of a kind of block, each compiled for itself; torch gives up after 8
REPEATED_BLOCKS = (DoubleConv, ResidualBlock)

Shape = tuple[int, ...]

logger = logging.getLogger(__name__)


@dataclass
class CompiledForward:
    """Whether the passes of a (bare) model on pictures of these shapes (B, 3, H, W) run compiled in training."""

    model: nn.Module
    shapes: set[Shape]
    folder: Path  # of compiled code, on the node
    enabled: bool = False
    running: bool = field(default=False, init=False)  # a compiled pass, just now

    def warm_up(self, shared: SharedArtifacts) -> float:
        """Compile forward and backward pass, and return the seconds that it took; parameters and statistics stay.

        One process of a node compiles while the others wait for its code, which those of other jobs and nodes find in
        `shared`. No gradients are exchanged between processes: the backward pass stops before the parameters'
        gradients, where DDP begins. SyncBatchNorm does exchange, so with it the processes compile side by side.
        """
        began = time.perf_counter()
        exchanges = any(isinstance(module, nn.SyncBatchNorm) for module in self.model.modules())
        with first_on_the_node(self.folder, "" if exchanges else shared.key):
            shared.load()
            with compiled_anew() as compiled:
                self._pass_each_shape()
            if compiled():
                shared.save()
        return time.perf_counter() - began

    def _pass_each_shape(self) -> None:
        before, was_training = self.enabled, self.model.training
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.enabled = True
        self.model.train()
        try:
            with untouched(self.model.buffers()):
                for shape in sorted(self.shapes):
                    image = torch.zeros(shape, device=parameters[0].device)
                    if any(p.ndim == 4 and p.stride(1) == 1 and p.shape[2] > 1 for p in parameters):
                        image = image.contiguous(memory_format=torch.channels_last)
                    logits = self.model(image)
                    torch.autograd.grad(logits.float().sum(), parameters, allow_unused=True)
        finally:
            self.enabled = before
            self.model.train(was_training)


def compile_forward(model: nn.Module, shapes: set[Shape], cache_dir: str, enabled: bool = True) -> CompiledForward:
    """Let a (bare) model's forward pass run compiled, in training and on pictures of these shapes (B, 3, H, W).

    Others, such as the last batch of an epoch, small pictures of progressive resizing and evaluation, run as before:
    nothing is compiled for them, and the names of parameters stay. The blocks of the lab's models are compiled one by
    one, and blocks of one kind and shape once. On a CPU that took about half of the time, and a step took no longer
    than with the whole compiled (LOG.md); it has not been measured on a GPU. Other models are compiled whole. Runs on
    a node share compiled code through the cache folder. Nothing is compiled before the first such pass.
    """
    import torch._dynamo  # here: it takes 1.3 s, which only runs that compile should spend

    folder = use_folder(cache_folder(cache_dir) / "inductor")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_BLOCK_SHAPES)
    compiled = CompiledForward(model, shapes, folder, enabled)
    blocks: list[nn.Module] = [module for module in model.modules() if isinstance(module, REPEATED_BLOCKS)]
    for part in blocks or [model]:
        _compile_part(part, compiled)
    plain = model.forward

    def forward(x: torch.Tensor) -> Any:
        compiled.running = compiled.enabled and model.training and tuple(x.shape) in shapes
        try:
            return plain(x)
        finally:
            compiled.running = False

    model.forward = forward
    return compiled


def _compile_part(part: nn.Module, compiled: CompiledForward) -> None:
    plain = part.forward
    fast: Callable[..., Any] = torch.compile(plain, dynamic=False)  # each shape is compiled for itself
    part.forward = lambda x: fast(x) if compiled.running else plain(x)


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
