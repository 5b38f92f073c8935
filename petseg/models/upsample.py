"""Bilinear upsampling to twice the size as two matrix products, which keep channels_last and add without atomics.

The backward pass of torch's `upsample_bilinear2d` adds with atomics in half precision: it is slow, it differs between
runs (pytorch issues 140096 and 60724), and compiled it became three quarters of a step on an H100. Interpolation is
linear in rows and in columns, so it is a product with one matrix each; tensor cores carry both out, and the backward
pass is the product with their transposes.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F

from petseg.models.reflect import is_channels_last, on_cpu

_matrices: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}


def upsample_bilinear(x: torch.Tensor) -> torch.Tensor:
    """Twice the size, corners on corners, in the precision of what comes in: (B, C, H, W) -> (B, C, 2H, 2W)."""
    device = x.device.type
    autocast = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    with autocast:
        if on_cpu(x):  # where torch's own kernel is quicker, and deterministic
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return upsample_by_products(x)


def upsample_by_products(x: torch.Tensor) -> torch.Tensor:
    """`F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)`, in the layout of x."""
    batch, channels, height, width = x.shape
    tall, wide = (_interpolation(size, x.dtype, x.device) for size in (height, width))
    if not is_channels_last(x):
        columns = torch.bmm(tall.expand(batch * channels, -1, -1), x.reshape(-1, height, width))
        return (columns @ wide.T).view(batch, channels, 2 * height, 2 * width)
    pixels = x.permute(0, 2, 3, 1)  # a view of channels_last memory
    columns = torch.bmm(tall.expand(batch, -1, -1), pixels.reshape(batch, height, width * channels))
    # rows last: their gradient may be a slice of a concatenation's channels, which this product takes without a copy
    rows = torch.bmm(wide.expand(batch * 2 * height, -1, -1), columns.view(-1, width, channels))
    return rows.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def interpolation_matrix(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(2 size, size) linear interpolation with corners on corners; the two weights of each row sum to exactly 1.

    Of two weights the larger is rounded to `dtype` and the smaller is the rest, which is then exact: rounded each by
    itself they would change a flat map by up to 0.4 % in bfloat16.
    """
    outputs = torch.arange(2 * size, dtype=torch.float64, device=device)[:, None]
    inputs = torch.arange(size, dtype=torch.float64, device=device)
    position = outputs * ((size - 1) / (2 * size - 1))
    below = position.floor()
    fraction = position - below
    larger = torch.maximum(fraction, 1 - fraction).to(dtype).to(torch.float64)
    above_weight = torch.where(fraction > 0.5, larger, 1 - larger)
    matrix = (inputs == below) * (1 - above_weight) + (inputs == below + 1) * above_weight
    return matrix.to(dtype)


def _interpolation(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix, kept for the next step; a compiled step makes its own, and without a GPU it may be fake."""
    if torch.compiler.is_compiling() or device.type != "cuda":
        return interpolation_matrix(size, dtype, device)
    key = (size, dtype, device)
    if key not in _matrices:
        _matrices[key] = interpolation_matrix(size, dtype, device)
    return _matrices[key]
