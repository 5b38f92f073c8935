"""Triton kernels of petseg.models.norm_relu_pad, for channels_last maps: one program takes rows (pixels) x channels.

`channels` is (4, C) float32: mean, 1 / standard deviation, weight / standard deviation, bias. Sums are float32 and each
program writes its own, without atomics, so that they come out the same in each run.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def moments_kernel(x, means, squares, rows, num_channels, per_program, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean, and sum of squared deviations from it, of a program's rows (Chan, Golub and LeVeque 1979)."""
    program, column = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    square = tl.zeros((BLOCK_C,), tl.float32)
    count = 0.0
    for start in range(0, per_program, BLOCK_R):
        row = (program * per_program + start + tl.arange(0, BLOCK_R)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < num_channels)[None, :]
        value = tl.load(x + row[:, None] * num_channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
        number = tl.sum((row < rows).to(tl.float32), axis=0)
        new_mean = tl.sum(value, axis=0) / tl.maximum(number, 1.0)
        deviation = tl.where(inside, value - new_mean[None, :], 0.0)
        share = number / tl.maximum(count + number, 1.0)
        apart = new_mean - mean
        mean += apart * share
        square += tl.sum(deviation * deviation, axis=0) + apart * apart * count * share
        count += number
    tl.store(means + program * num_channels + column, mean, mask=column < num_channels)
    tl.store(squares + program * num_channels + column, square, mask=column < num_channels)


@triton.jit
def _normalised(x, residual, channels, place, column, inside, num_channels, HAS_RESIDUAL: tl.constexpr):
    """The map less its mean, and the normalised map with the residual, before the ReLU."""
    known = column < num_channels
    mean = tl.load(channels + column, mask=known, other=0.0)
    scale = tl.load(channels + 2 * num_channels + column, mask=known, other=0.0)
    bias = tl.load(channels + 3 * num_channels + column, mask=known, other=0.0)
    centred = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
    value = centred * scale[None, :] + bias[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    return centred, value


@triton.jit
def _reflected(position, size):
    position = tl.abs(position)
    return tl.where(position >= size, 2 * (size - 1) - position, position)


@triton.jit
def pad_kernel(
    x, residual, channels, padded, rows, num_channels, height, width,
    MARGIN: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Normalise, add, ReLU, and write each value to its place in the padded map and in the margins. rows: of it"""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (column < num_channels)[None, :]
    tall, wide = height + 2 * MARGIN, width + 2 * MARGIN
    picture, pixel = row // (tall * wide), row % (tall * wide)
    y, x_position = _reflected(pixel // wide - MARGIN, height), _reflected(pixel % wide - MARGIN, width)
    source = (picture * height + y) * width + x_position
    place = source[:, None] * num_channels + column[None, :]
    _, value = _normalised(x, residual, channels, place, column, inside, num_channels, HAS_RESIDUAL)
    value = tl.where(value < 0.0, 0.0, value)  # NaN stays
    tl.store(padded + row[:, None] * num_channels + column[None, :], value.to(padded.dtype.element_ty), mask=inside)


@triton.jit
def _folded_place(position, size, MARGIN: tl.constexpr, SIDE: tl.constexpr):
    """Where the padded map has a position's value: itself (0), its reflection before (1) and after (2); and whether."""
    if SIDE == 0:
        place, there = position + MARGIN, position >= 0
    elif SIDE == 1:
        place, there = MARGIN - position, (position >= 1) & (position <= MARGIN)
    else:
        place, there = MARGIN + 2 * (size - 1) - position, (position >= size - 1 - MARGIN) & (position <= size - 2)
    return place, there


@triton.jit
def fold_kernel(
    grad, x, residual, channels, folded, sums, products, rows, num_channels, height, width, per_program,
    MARGIN: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient before the ReLU, its sums, and those of its products with the centred map. rows: of the map"""
    program, column = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    product = tl.zeros((BLOCK_C,), tl.float32)
    tall, wide = height + 2 * MARGIN, width + 2 * MARGIN
    for start in range(0, per_program, BLOCK_R):
        row = (program * per_program + start + tl.arange(0, BLOCK_R)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < num_channels)[None, :]
        picture, pixel = row // (height * width), row % (height * width)
        value = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for vertical in tl.static_range(3 if MARGIN else 1):
            y, there_y = _folded_place(pixel // width, height, MARGIN, vertical)
            for horizontal in tl.static_range(3 if MARGIN else 1):
                z, there_z = _folded_place(pixel % width, width, MARGIN, horizontal)
                source = (picture * tall + y) * wide + z
                mask = inside & (there_y & there_z)[:, None]
                part = tl.load(grad + source[:, None] * num_channels + column[None, :], mask=mask, other=0.0)
                value += part.to(tl.float32)
        place = row[:, None] * num_channels + column[None, :]
        centred, before = _normalised(x, residual, channels, place, column, inside, num_channels, HAS_RESIDUAL)
        value = tl.where((before <= 0.0) | (inside == 0), 0.0, value)
        tl.store(folded + place, value.to(folded.dtype.element_ty), mask=inside)
        total += tl.sum(value, axis=0)
        product += tl.sum(value * centred, axis=0)
    tl.store(sums + program * num_channels + column, total, mask=column < num_channels)
    tl.store(products + program * num_channels + column, product, mask=column < num_channels)


@triton.jit
def input_gradient_kernel(
    folded, x, channels, means, grad_x, rows, num_channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The map's gradient. means: (2, C), of the gradient, and of its product with the centred map over the variance"""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = column < num_channels
    inside = (row < rows)[:, None] & known[None, :]
    place = row[:, None] * num_channels + column[None, :]
    mean = tl.load(channels + column, mask=known, other=0.0)
    scale = tl.load(channels + 2 * num_channels + column, mask=known, other=0.0)
    mean_grad = tl.load(means + column, mask=known, other=0.0)
    slope = tl.load(means + num_channels + column, mask=known, other=0.0)
    centred = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
    value = tl.load(folded + place, mask=inside, other=0.0).to(tl.float32)
    value = (value - mean_grad[None, :] - centred * slope[None, :]) * scale[None, :]
    tl.store(grad_x + place, value.to(grad_x.dtype.element_ty), mask=inside)
