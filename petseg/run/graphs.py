"""A training pass as a CUDA graph: captured once for each shape of batch, then started with a single launch.

A step of resnet34_unet launches some 1,250 kernels, and a launch costs the host 10 to 30 us: at 32 pictures a batch the
GPU waits for the host (spikingjelly's issue 740 shows 5.1 times the speed at batch 8, and 1.01 at 96). The graph holds
forward pass, loss, backward pass and the sums of the metrics. Augmentation stands before it, because how many pictures
it changes differs from batch to batch; clipping and any optimizer stand after it, in a few launches. The exchange of
gradients between processes stands after it too (petseg.optim.exchange). torch can capture DDP's own, but a collective
in a graph waits for ever where one process has no graph of that shape or could not capture it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from petseg.config import RunConfig
from petseg.optim.exchange import GradientExchange

MAX_GRAPHS = 16  # shapes: the sizes of progressive resizing, each with the full and the last batch
WARM_UP_PASSES = 3  # before a capture: cuDNN chooses its algorithms, lazily built things get built

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassInputs:
    """What a training pass takes, on the device."""

    image: torch.Tensor  # (B, 3, H, W) float32, normalised
    target: torch.Tensor  # (B, H, W) int64
    weight: torch.Tensor  # (B,) float32, of each sample in the sums
    scale: torch.Tensor  # () float32: the loss is the weighted sum of the samples' losses times this

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.image, self.target, self.weight, self.scale

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.image.shape)


Pass = Callable[[PassInputs], torch.Tensor]  # leaves the gradients in the parameters, returns the sums (4,)


class Capture(Protocol):
    """How work is recorded; another one stands in for CUDA in tests."""

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Record the work; returns what repeats it on the same memory, and its result, which that overwrites."""

    def forget(self) -> None:
        """Give up the memory of what was recorded, which is not repeated any more."""


class CudaCapture:
    """torch.cuda.graph, all in one memory pool: one graph runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's threads go on pinning memory meanwhile, which "global" forbids
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        self._pool = self._pool or graph.pool()
        return graph.replay, result

    def forget(self) -> None:
        self._pool = None  # it ends with its last graph


@dataclass(frozen=True)
class _Graph:
    replay: Callable[[], None]
    inputs: PassInputs  # the memory that it reads
    sums: torch.Tensor  # and writes
    gradients: Sequence[torch.Tensor | None]


class PassGraphs:
    """Runs training passes: each shape of inputs is captured at its first pass, if there is something to capture with.

    The numbers are those of the plain pass: passes that warm up a capture leave BatchNorm's statistics as they were.
    Where a step has several passes (`accumulates`), their graphs add to gradients in memory that they share, which is
    set to zero at the first pass of a step; otherwise each graph writes gradients of its own.
    """

    def __init__(self, model: nn.Module, capture: Capture | None, accumulates: bool = False) -> None:
        """model: the (bare) one that passes train, whose parameters keep their memory; capture: None = no graphs"""
        self._model = model
        self._capture = capture
        self._accumulates = accumulates
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._totals: list[torch.Tensor | None] = []  # of accumulated gradients; None = the model does not use it
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._passes = self._replays = 0  # since the share of graphs was last taken

    def run(self, plain: Pass, inputs: PassInputs) -> torch.Tensor:
        """The sums (4,) of a pass; they are overwritten by the next pass, as the gradients are by the next step."""
        self._passes += 1
        graph = self._graphs.get(inputs.shape)
        if graph is None and self._capture is not None and len(self._graphs) < MAX_GRAPHS:
            graph = self._try_to_capture(self._capture, plain, inputs)
        if graph is None:
            return plain(inputs)
        for kept, new in zip(graph.inputs.tensors(), inputs.tensors(), strict=True):
            kept.copy_(new)
        if self._accumulates:
            self._add_to_totals()
        graph.replay()
        self._replays += 1
        for parameter, gradient in zip(self._parameters, graph.gradients, strict=True):
            parameter.grad = gradient  # which zero_grad has taken away
        return graph.sums

    def take_share(self) -> float:
        """The share of the passes since the last call that graphs carried out, NaN without any pass."""
        share = self._replays / self._passes if self._passes else math.nan
        self._passes = self._replays = 0
        return share

    def forget(self) -> None:
        """Capture each shape anew at its next pass, because passes are carried out in another way from now on."""
        self._graphs.clear()
        if self._capture is not None:
            self._capture.forget()

    def _add_to_totals(self) -> None:
        """Make the totals what the step's earlier passes have added up, which are none after zero_grad."""
        fresh = [t for p, t in zip(self._parameters, self._totals, strict=True) if t is not None and p.grad is None]
        if fresh:
            torch._foreach_zero_(fresh)
        for parameter, total in zip(self._parameters, self._totals, strict=True):
            if total is not None and parameter.grad is not None and parameter.grad is not total:
                total.copy_(parameter.grad)  # of a pass that ran without a graph
            parameter.grad = total

    def _try_to_capture(self, capture: Capture, plain: Pass, inputs: PassInputs) -> _Graph | None:
        earlier = [p.grad for p in self._parameters]  # of the step's earlier passes
        try:
            graph = self._captured(capture, plain, inputs)
        except RuntimeError as error:  # a layer that cannot be recorded, or not enough memory
            self._capture = None
            reason = str(error).partition("\n")[0]
            logger.warning("training goes on without CUDA graphs: capturing %s failed: %s", inputs.shape, reason)
            return None
        finally:
            self._set_gradients(earlier)
        self._graphs[inputs.shape] = graph
        logger.info("captured the training pass of %s as a CUDA graph", inputs.shape)
        return graph

    def _captured(self, capture: Capture, plain: Pass, inputs: PassInputs) -> _Graph:
        kept = PassInputs(*(tensor.clone(memory_format=torch.preserve_format) for tensor in inputs.tensors()))
        with untouched(self._model.buffers()), _side_stream(inputs.image.device):
            for _ in range(WARM_UP_PASSES):
                self._model.zero_grad()
                plain(kept)
        if self._accumulates and not self._totals:
            self._totals = [None if p.grad is None else torch.zeros_like(p.grad) for p in self._parameters]
        # without totals the graph gets gradients of its own, which it writes and does not add to
        self._set_gradients(self._totals or [None] * len(self._parameters))
        # a stand-in for CUDA runs what it records
        with untouched([*self._model.buffers(), *(total for total in self._totals if total is not None)]):
            replay, sums = capture(lambda: plain(kept))
        return _Graph(replay, kept, sums, [p.grad for p in self._parameters])

    def _set_gradients(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient


def build_pass_graphs(config: RunConfig, model: nn.Module, device: torch.device, world_size: int) -> PassGraphs:
    """Graphs of the (bare) model's training passes, which are run as they are where graphs cannot be had."""
    reason = why_no_graphs(config, device, world_size)
    if reason and device.type == "cuda":
        logger.info("training without CUDA graphs: %s", reason)
    return PassGraphs(model, None if reason else CudaCapture(), accumulates=config.train.accumulates)


def build_exchange(
    config: RunConfig, model: nn.Module, device: torch.device, world_size: int
) -> GradientExchange | None:
    """How the processes of a run with graphs exchange their gradients; None = DDP does, or there is one process."""
    if world_size == 1 or why_no_graphs(config, device, world_size):
        return None
    return GradientExchange(model, world_size)


@contextlib.contextmanager
def untouched(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Tensors such as BatchNorm's statistics have the values of before afterwards, in the same memory."""
    kept = list(tensors)
    before = [tensor.clone(memory_format=torch.preserve_format) for tensor in kept]
    try:
        yield
    finally:
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream other than the default one, as a capture will; on a CPU nothing changes."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def why_no_graphs(config: RunConfig, device: torch.device, world_size: int) -> str | None:
    """Why the training passes of a run are not captured; None if they are."""
    train, augment = config.train, config.augment
    if not train.cuda_graphs:
        return "train.cuda_graphs is off"
    if device.type != "cuda":
        return "there is no GPU"
    if world_size > 1 and train.sync_batchnorm:
        return "train.sync_batchnorm exchanges statistics within the pass"
    if world_size > int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return "between nodes, DDP hides the exchange of gradients behind the backward pass, and a graph could not"
    if train.mixed_precision == "fp16":
        return "the loss scale of fp16 changes from step to step"
    if train.grad_checkpointing:
        return "train.grad_checkpointing runs parts of the forward pass again"
    if augment.mode == "add" and augment.policy != "none":
        return "augment.mode = add makes batches of any size"
    return None
