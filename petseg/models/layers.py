"""Layers that both lab models are made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from petseg.models.reflect import on_cpu, reflect_pad
from petseg.models.small_maps import convolve_as_product, is_quicker_as_product
from petseg.models.upsample import upsample_bilinear


class ReflectConv2d(nn.Conv2d):
    """Convolution that keeps the size (divided by the stride): its input is padded by `reflect_pad`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = False
    ) -> None:
        """bias: of no use where BatchNorm follows"""
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)
        self.margin = kernel_size // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)
        padded = reflect_pad(x, self.margin)
        if self.training and self.bias is None and on_cpu(x) and not torch.compiler.is_compiling():
            # in training alone, which leaves sizes symbolic where a model is exported
            pixels = len(x) * math.prod((size - 1) // self.stride[0] + 1 for size in x.shape[-2:])
            if is_quicker_as_product(self.weight, pixels):
                return convolve_as_product(padded, self.weight, self.stride[0])
        return super().forward(padded)


class DoubleConv(nn.Sequential):
    """Twice (3x3 convolution, BatchNorm, ReLU): (B, C_in, H, W) -> (B, C_out, H, W), with mid_channels between."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None) -> None:
        mid = mid_channels or out_channels
        super().__init__(
            ReflectConv2d(in_channels, mid, 3),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            ReflectConv2d(mid, out_channels, 3),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class BilinearUpsample(nn.Module):
    """Twice the size by `upsample_bilinear`: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample_bilinear(x)


def build_upsample(channels: int, out_channels: int, up: str) -> nn.Module:
    """Twice the size: bilinear interpolation (channels kept), or a learned transposed convolution to out_channels."""
    if up == "bilinear":
        return BilinearUpsample()
    if up == "transposed":
        return nn.ConvTranspose2d(channels, out_channels, kernel_size=2, stride=2)
    raise ValueError(f"model.up = {up!r}: choose one of bilinear, transposed")


def check_size(x: torch.Tensor) -> None:
    """Raise ValueError unless height and width of (B, C, H, W) are multiples of 32."""
    height, width = x.shape[-2:]
    if height % 32 or width % 32:
        raise ValueError(f"input of {height}x{width} pixels: height and width must be multiples of 32")


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution, with a stride if need be: (B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride)).

    On a CPU the stride is taken beforehand, which is the same function. oneDNN, as torch 2.14 has it, writes past its
    memory in the backward pass of a strided 1x1 convolution in channels_last with AVX-512, two threads, fewer than 16
    channels and an odd batch: (11, 4, 16, 16) to 8 channels aborts with "corrupted double-linked list".
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        vertical, horizontal = self.stride
        return F.conv2d(x[..., ::vertical, ::horizontal], self.weight, self.bias)
