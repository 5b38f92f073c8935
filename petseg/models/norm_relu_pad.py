"""BatchNorm, a residual sum if there is one, ReLU and reflect padding as one operator, which writes the padded map.

In the best step measured on an H100 BatchNorm with what is fused to it takes 28 to 34 %, and padding 5 to 7 %. Here the
map is read once for its moments and once to be written padded; the backward pass reads gradient and map twice. No
network uses it yet, because nobody has timed it: `python -m benchmarks.gpu` compares it with the layers
one by one, eager and compiled (part "fused").
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petseg.models.reflect import is_channels_last, reflect_pad

MOST_PROGRAMS = 1024  # of a reduction over pixels, some eight for each multiprocessor
BLOCK_VALUES = 4096
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on a CPU, for tests
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def norm_relu_pad(
    x: torch.Tensor, norm: nn.BatchNorm2d, margin: int, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """ReLU(norm(x) + residual), padded by its reflection: (B, C, H, W) -> (B, C, H + 2 margin, W + 2 margin).

    Where the kernels do not fit (see `why_composed`) it is composed of the layers, and a test compares the two.
    """
    if why_composed(x, norm, margin) is not None:
        return composed(x, norm, margin, residual)
    affine = torch.stack([norm.weight, norm.bias]).float()
    padded, _, moments = torch.ops.petseg.norm_relu_pad(x, residual, affine, norm.eps, margin)
    _update_statistics(norm, moments.detach(), x.numel() // x.shape[1])
    return padded


def composed(x: torch.Tensor, norm: nn.Module, margin: int, residual: torch.Tensor | None = None) -> torch.Tensor:
    """Compute what `norm_relu_pad` computes, layer by layer."""
    y = norm(x)
    y = F.relu(y if residual is None else y + residual)
    return reflect_pad(y, margin) if margin else y


def why_composed(x: torch.Tensor, norm: nn.BatchNorm2d, margin: int) -> str | None:
    """Why the kernels do not fit; None if they do."""
    if not _can_run(x.device.type):
        return "Triton needs a GPU"
    if type(norm) is not nn.BatchNorm2d or not norm.affine:
        return "only BatchNorm2d with weights has kernels: SyncBatchNorm takes its moments over processes"
    if not norm.training or norm.momentum is None or not norm.track_running_stats:
        return "there are kernels for training alone, with running statistics and a momentum"
    if x.dtype not in PRECISIONS or not is_channels_last(x):
        return "the map is not in channels_last and in one of float32, bfloat16, float16"
    if min(x.shape[-2:]) <= margin or x.numel() == x.shape[1]:
        return "the map is no larger than its margin, or has one value a channel"
    return None


def _can_run(device_type: str) -> bool:
    return HAS_TRITON and (device_type == "cuda" or INTERPRETED)


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, moments: torch.Tensor, count: int) -> None:
    """As BatchNorm does: the running variance is the unbiased one. moments: (2, C), mean and biased variance"""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    momentum = norm.momentum or 0.0
    norm.num_batches_tracked.add_(1)
    norm.running_mean.mul_(1 - momentum).add_(moments[0], alpha=momentum)
    norm.running_var.mul_(1 - momentum).add_(moments[1], alpha=momentum * count / (count - 1))


@torch.library.custom_op("petseg::norm_relu_pad", mutates_args=())
def _forward(
    x: torch.Tensor, residual: torch.Tensor | None, affine: torch.Tensor, eps: float, margin: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The padded map, `channels` of the kernels, and mean and biased variance (2, C). affine: (2, C) float32"""
    from petseg.models import norm_kernels as kernels

    batch, num_channels, height, width = x.shape
    rows = batch * height * width
    block, per_program, programs = _reduction(rows, num_channels)
    means, squares = x.new_empty((2, programs, num_channels), dtype=torch.float32)
    grid = (programs, _blocks(num_channels, block[1]))
    kernels.moments_kernel[grid](x, means, squares, rows, num_channels, per_program, *block)
    first_rows = torch.arange(programs, device=x.device) * per_program
    counts = (rows - first_rows).clamp(max=per_program).unsqueeze(1).float()
    mean = (means * (counts / rows)).sum(0)
    variance = (squares + (means - mean).square() * counts).sum(0) / rows
    scale = (variance + eps).rsqrt()
    channels = torch.stack([mean, scale, affine[0] * scale, affine[1]])
    padded = _empty_padded(x, margin)
    padded_rows = padded.numel() // num_channels
    kernels.pad_kernel[_blocks(padded_rows, block[0]), grid[1]](
        x, _or_itself(residual, x), channels, padded, padded_rows, num_channels, height, width,
        margin, residual is not None, *block,
    )  # fmt: skip
    return padded, channels, torch.stack([mean, variance])


@_forward.register_fake
def _(
    x: torch.Tensor, residual: torch.Tensor | None, affine: torch.Tensor, eps: float, margin: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty_padded(x, margin), affine.new_empty((4, x.shape[1])), affine.new_empty((2, x.shape[1]))


@torch.library.custom_op("petseg::norm_relu_pad_backward", mutates_args=())
def _backward(
    grad: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None, channels: torch.Tensor, margin: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, of the residual, and of weight and bias (2, C)."""
    from petseg.models import norm_kernels as kernels

    grad = grad.contiguous(memory_format=torch.channels_last)
    batch, num_channels, height, width = x.shape
    rows = batch * height * width
    block, per_program, programs = _reduction(rows, num_channels)
    sums, products = x.new_empty((2, programs, num_channels), dtype=torch.float32)
    folded, grad_x = torch.empty_like(x), torch.empty_like(x)
    columns = _blocks(num_channels, block[1])
    kernels.fold_kernel[programs, columns](
        grad, x, _or_itself(residual, x), channels, folded, sums, products, rows, num_channels, height, width,
        per_program, margin, residual is not None, *block,
    )  # fmt: skip
    total, product = sums.sum(0), products.sum(0)
    inverse_std = channels[1]
    means = torch.stack([total, product * inverse_std.square()]) / rows
    kernels.input_gradient_kernel[_blocks(rows, block[0]), columns](
        folded, x, channels, means, grad_x, rows, num_channels, *block
    )
    return grad_x, folded, torch.stack([product * inverse_std, total])


@_backward.register_fake
def _(
    grad: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None, channels: torch.Tensor, margin: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x), channels.new_empty((2, x.shape[1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, residual, _, _, ctx.margin = inputs
    ctx.save_for_backward(x, residual, output[1])


def _differentiate(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Differentiate the padded map alone: the moments only enter the running statistics."""
    x, residual, channels = ctx.saved_tensors
    grad_x, grad_residual, grad_affine = torch.ops.petseg.norm_relu_pad_backward(
        grads[0], x, residual, channels, ctx.margin
    )
    return grad_x, None if residual is None else grad_residual, grad_affine, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _empty_padded(x: torch.Tensor, margin: int) -> torch.Tensor:
    batch, num_channels, height, width = x.shape
    size = (batch, num_channels, height + 2 * margin, width + 2 * margin)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _or_itself(residual: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """A residual in the layout of x; a kernel takes a pointer in any case."""
    return x if residual is None else residual.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _reduction(rows: int, num_channels: int) -> tuple[tuple[int, int], int, int]:
    """(rows and channels of a block, rows of a program, programs) of a sum over pixels."""
    columns = min(64, 1 << (num_channels - 1).bit_length())
    block = BLOCK_VALUES // columns
    per_program = _blocks(_blocks(rows, MOST_PROGRAMS), block) * block
    return (block, columns), per_program, _blocks(rows, per_program)


def _blocks(length: int, block: int) -> int:
    return -(-length // block)
