"""Reflect padding that keeps the layout of its input and adds without atomics.

torch's `reflection_pad2d` writes NCHW on a GPU, so that cuDNN copies its output to channels_last and its gradient back,
and its backward pass adds with atomics, whose order differs between runs. On an H100 the two took 40 % of a step of
resnet34_unet. Here the backward pass folds the padding onto the map as sums of shifted slices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

_as_on_gpu = False


def reflect_pad(x: torch.Tensor, margin: int) -> torch.Tensor:
    """Pad a map on all four sides by its reflection: (B, C, H, W) -> (B, C, H + 2 margin, W + 2 margin).

    Where the map is no larger than the margin there is nothing to reflect, and its edge is repeated instead, so that a
    32 px picture passes through a network that reduces it to one pixel.
    """
    reflects = min(x.shape[-2:]) > margin
    if on_cpu(x):
        with torch.autocast("cpu", enabled=False):  # which would pad in float32, twice the bytes
            return F.pad(x, (margin,) * 4, mode="reflect" if reflects else "replicate")
    padded: torch.Tensor = _ReflectPad.apply(x, margin, reflects)
    return padded


class _ReflectPad(torch.autograd.Function):
    """Padding in the layout of the input, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, margin: int, reflects: bool) -> torch.Tensor:
        ctx.margin, ctx.reflects = margin, reflects
        if torch.compiler.is_compiling():  # Inductor fuses this into the layer before, and picks the layout itself
            padded = F.pad(x, (margin,) * 4, mode="reflect" if reflects else "replicate")
            return padded.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else padded
        return pad_by_slices(x, margin, reflects)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        fold = _fold_as_sum if torch.compiler.is_compiling() else fold_by_slices
        return fold(grads[0], ctx.margin, ctx.reflects), None, None


def pad_by_slices(x: torch.Tensor, margin: int, reflects: bool) -> torch.Tensor:
    """Copy the map into a larger one of the same layout, then its margins: rows first, and columns with the corners."""
    batch, channels, height, width = x.shape
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    size = (batch, channels, height + 2 * margin, width + 2 * margin)
    padded = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
    padded[..., margin:-margin, margin:-margin] = x
    for dim, length in ((2, height), (3, width)):
        inner = padded.narrow(dim, margin, length)
        source = inner if dim == 3 else inner.narrow(3, margin, width)
        target = padded if dim == 3 else padded.narrow(3, margin, width)
        before, after = _mirrored(source, dim, margin, reflects)
        target.narrow(dim, 0, margin).copy_(before)
        target.narrow(dim, margin + length, margin).copy_(after)
    return padded


def _mirrored(x: torch.Tensor, dim: int, margin: int, reflects: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands before and after a map along a dimension: its reflection, or its edge to be repeated."""
    length = x.shape[dim]
    if not reflects:
        return x.narrow(dim, 0, 1), x.narrow(dim, length - 1, 1)
    before, after = x.narrow(dim, 1, margin), x.narrow(dim, length - 1 - margin, margin)
    return _flipped(before, dim), _flipped(after, dim)


def _flipped(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.flip(dim) if x.shape[dim] > 1 else x


def fold_by_slices(grad: torch.Tensor, margin: int, reflects: bool) -> torch.Tensor:
    """The gradient of the map from that of the padded one, in place on a copy of its inner part."""
    height, width = (size - 2 * margin for size in grad.shape[-2:])
    middle = grad.narrow(3, margin, width)
    folded = middle.narrow(2, margin, height).clone(memory_format=torch.preserve_format)
    # the sides, without their corners
    for dim, source in ((2, middle), (3, grad.narrow(2, margin, height))):
        _add_strips(folded, source, dim, margin, reflects)
    # the corners: the rows above and below are folded like maps of their own, of their sides alone
    for start in (0, margin + height):
        strip = grad.narrow(2, start, margin)
        corners = torch.zeros_like(strip.narrow(3, margin, width))
        _add_strips(corners, strip, 3, margin, reflects)
        rows = _target_rows(folded, 2, margin, reflects, first=start == 0)
        rows.add_(_flipped(corners, 2) if reflects else corners.sum(2, keepdim=True))
    return folded


def _add_strips(folded: torch.Tensor, grad: torch.Tensor, dim: int, margin: int, reflects: bool) -> None:
    """Add the two strips of a gradient that is padded along one dimension."""
    for start in (0, margin + folded.shape[dim]):
        strip = grad.narrow(dim, start, margin)
        target = _target_rows(folded, dim, margin, reflects, first=start == 0)
        target.add_(_flipped(strip, dim) if reflects else strip.sum(dim, keepdim=True))


def _target_rows(x: torch.Tensor, dim: int, margin: int, reflects: bool, first: bool) -> torch.Tensor:
    """Where a map takes the gradient of a strip: the inverse of `_mirrored`."""
    length = x.shape[dim]
    if not reflects:
        return x.narrow(dim, 0 if first else length - 1, 1)
    return x.narrow(dim, 1 if first else length - 1 - margin, margin)


def _fold_as_sum(grad: torch.Tensor, margin: int, reflects: bool) -> torch.Tensor:
    """As `fold_by_slices`, without writing in place: what Inductor turns into one kernel, fused with its neighbours."""
    for dim in (2, 3):
        length = grad.shape[dim] - 2 * margin
        folded = grad.narrow(dim, margin, length)
        for first, start in ((True, 0), (False, margin + length)):
            strip = grad.narrow(dim, start, margin)
            strip = _flipped(strip, dim) if reflects else strip.sum(dim, keepdim=True)
            offset = (1 if first else length - 1 - margin) if reflects else (0 if first else length - 1)
            around = (offset, length - offset - strip.shape[dim])
            folded = folded + F.pad(strip, around if dim == 3 else (0, 0, *around))
        grad = folded
    return grad


def on_cpu(x: torch.Tensor) -> bool:
    """Whether a layer takes torch's own kernel, which on a CPU keeps the layout and is deterministic."""
    return x.device.type == "cpu" and not _as_on_gpu


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Let layers take their way on a GPU on any device: fake tensors that stand for a GPU's say they are on a CPU."""
    global _as_on_gpu
    before, _as_on_gpu = _as_on_gpu, True
    try:
        yield
    finally:
        _as_on_gpu = before


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether a pixel's channels lie side by side; true for a map of one pixel, where both layouts are the same."""
    return x.is_contiguous(memory_format=torch.channels_last) and x.stride(1) == 1
