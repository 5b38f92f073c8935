"""Convolutions of small maps with many channels, as one matrix product each: what is quicker for them on a CPU.

The deepest layers of a network can have fewer pixels in a batch than channels, and oneDNN's convolutions are slow at
them. Of a convolution of 512 channels on 8 maps of 4x4 pixels in bf16 the weights' gradient takes 2 ms instead of 18 on
a Xeon with AMX, and the two other passes a third to a half of their time (LOG.md).
"""

from __future__ import annotations

from typing import Any

import torch

from petseg.models.reflect import is_channels_last

MIN_CHANNELS = 128  # fewer have not been measured


def is_quicker_as_product(weight: torch.Tensor, pixels: int) -> bool:
    """Whether a convolution with this weight (O, C, k, k) has few output pixels in its batch for its many channels."""
    return min(weight.shape[:2]) >= MIN_CHANNELS and pixels <= weight.shape[0] and is_channels_last(weight)


def convolve_as_product(padded: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """`F.conv2d(padded, weight, stride=stride)` under autocast: (B, C, H, W) and (O, C, k, k) -> (B, O, h, w)."""
    if torch.is_autocast_enabled("cpu"):
        precision = torch.get_autocast_dtype("cpu")
        padded, weight = padded.to(precision), weight.to(precision)
    convolved: torch.Tensor = _Product.apply(padded, weight, stride)
    return convolved


class _Product(torch.autograd.Function):
    """A row of the matrix is what one output pixel sees, in the order (row, column, channel) of channels_last."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        batch, channels, height, width = padded.shape
        out_channels, _, size, _ = weight.shape
        rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
        ctx.shape, ctx.stride, ctx.out = (batch, height, width, channels), stride, (rows, columns)
        pixels = padded.permute(0, 2, 3, 1)
        windows = torch.cat([_window(pixels, offset, ctx.out, stride) for offset in _offsets(size)], dim=-1)
        seen = windows.view(-1, size * size * channels)
        ctx.save_for_backward(seen, weight)
        product = seen @ weight.permute(0, 2, 3, 1).reshape(out_channels, -1).T
        return product.view(batch, rows, columns, out_channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        seen, weight = ctx.saved_tensors
        out_channels, channels, size, _ = weight.shape
        grad = grads[0].permute(0, 2, 3, 1).reshape(-1, out_channels)
        for_weight, for_input = None, None
        if ctx.needs_input_grad[1]:
            for_weight = (grad.T @ seen).view(out_channels, size, size, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            by_window = grad @ weight.permute(0, 2, 3, 1).reshape(out_channels, -1)
            parts = by_window.view(ctx.shape[0], *ctx.out, size * size, channels).unbind(-2)
            summed = torch.zeros(ctx.shape, dtype=torch.promote_types(grad.dtype, torch.float32))
            for offset, part in zip(_offsets(size), parts, strict=True):
                _window(summed, offset, ctx.out, ctx.stride).add_(part)
            for_input = summed.to(grad.dtype).permute(0, 3, 1, 2)
        return for_input, for_weight, None


def _offsets(size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(size) for column in range(size)]


def _window(pixels: torch.Tensor, offset: tuple[int, int], out: tuple[int, int], stride: int) -> torch.Tensor:
    """What the filter's element at an offset sees of (B, H, W, C): (B, h, w, C)."""
    (row, column), (rows, columns) = offset, out
    return pixels[:, row : row + stride * rows : stride, column : column + stride * columns : stride]
