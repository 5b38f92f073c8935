"""A training pass as a CUDA graph: captured once for each shape of batch, then started with a single launch.

A step of resnet34_unet launches some 1,250 kernels, and a launch costs the host 10 to 30 us: at 32 pictures a batch the
GPU waits for the host (spikingjelly's issue 740 shows 5.1 times the speed at batch 8, and 1.01 at 96). The graph holds
forward pass, loss, backward pass and the sums of the metrics. Augmentation stands before it, because how many pictures
it changes differs from batch to batch; clipping and any optimizer stand after it, in a few launches.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from petseg.config import RunConfig

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


@dataclass(frozen=True)
class _Graph:
    replay: Callable[[], None]
    inputs: PassInputs  # the memory that it reads
    sums: torch.Tensor  # and writes
    gradients: Sequence[torch.Tensor | None]


class PassGraphs:
    """Runs training passes: each shape of inputs is captured at its first pass, if there is something to capture with.

    The numbers are those of the plain pass: passes that warm up a capture leave BatchNorm's statistics as they were.
    """

    def __init__(self, model: nn.Module, capture: Capture | None) -> None:
        """model: the (bare) one that passes train, whose parameters keep their memory; capture: None = no graphs"""
        self._model = model
        self._capture = capture
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    def run(self, plain: Pass, inputs: PassInputs) -> torch.Tensor:
        """The sums (4,) of a pass; they are overwritten by the next pass, as the gradients are."""
        graph = self._graphs.get(inputs.shape)
        if graph is None and self._capture is not None and len(self._graphs) < MAX_GRAPHS:
            graph = self._try_to_capture(self._capture, plain, inputs)
        if graph is None:
            return plain(inputs)
        for kept, new in zip(graph.inputs.tensors(), inputs.tensors(), strict=True):
            kept.copy_(new)
        graph.replay()
        for parameter, gradient in zip(self._parameters, graph.gradients, strict=True):
            parameter.grad = gradient  # which zero_grad has taken away
        return graph.sums

    def _try_to_capture(self, capture: Capture, plain: Pass, inputs: PassInputs) -> _Graph | None:
        try:
            graph = self._captured(capture, plain, inputs)
        except RuntimeError as error:  # a layer that cannot be recorded, or not enough memory
            self._capture = None
            self._model.zero_grad()
            reason = str(error).partition("\n")[0]
            logger.warning("training goes on without CUDA graphs: capturing %s failed: %s", inputs.shape, reason)
            return None
        self._graphs[inputs.shape] = graph
        logger.info("captured the training pass of %s as a CUDA graph", inputs.shape)
        return graph

    def _captured(self, capture: Capture, plain: Pass, inputs: PassInputs) -> _Graph:
        kept = PassInputs(*(tensor.clone(memory_format=torch.preserve_format) for tensor in inputs.tensors()))
        with _untouched_buffers(self._model), _side_stream(inputs.image.device):
            for _ in range(WARM_UP_PASSES):
                self._model.zero_grad()
                plain(kept)
        self._model.zero_grad()  # so that the graph has gradients of its own, which it writes and does not add to
        with _untouched_buffers(self._model):  # a stand-in for CUDA runs what it records
            replay, sums = capture(lambda: plain(kept))
        return _Graph(replay, kept, sums, [p.grad for p in self._parameters])


def build_pass_graphs(config: RunConfig, model: nn.Module, device: torch.device, world_size: int) -> PassGraphs:
    """Graphs of the (bare) model's training passes, which are run as they are where graphs cannot be had."""
    reason = why_no_graphs(config, device, world_size)
    if reason and device.type == "cuda":
        logger.info("training without CUDA graphs: %s", reason)
    return PassGraphs(model, None if reason else CudaCapture())


@contextlib.contextmanager
def _untouched_buffers(model: nn.Module) -> Iterator[None]:
    """BatchNorm's statistics afterwards are those of before, in the same memory."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


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
    if world_size > 1:
        return "several processes exchange their gradients within the backward pass"
    if train.accumulation_steps != 1:
        return "train.accumulation_steps adds up the gradients of several passes"
    if train.mixed_precision == "fp16":
        return "the loss scale of fp16 changes from step to step"
    if train.grad_checkpointing:
        return "train.grad_checkpointing runs parts of the forward pass again"
    if augment.mode == "add" and augment.policy != "none":
        return "augment.mode = add makes batches of any size"
    return None
