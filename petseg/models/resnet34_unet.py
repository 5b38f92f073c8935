"""UNet with a ResNet34 encoder (He et al. 2016) and a narrow decoder, from scratch, as the lab built it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from petseg.models.layers import DoubleConv, PointwiseConv2d, ReflectConv2d, build_upsample, check_size

BLOCKS = (3, 4, 6, 3)  # residual blocks of the four stages of a ResNet34


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes: -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ReflectConv2d(in_channels, out_channels, 3, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = ReflectConv2d(out_channels, out_channels, 3)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                PointwiseConv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Encoder(nn.Module):
    """(B, C, H, W) -> feature maps at 1/4, 1/8, 1/16 and 1/32 of the size with w, 2w, 4w and 8w channels."""

    def __init__(self, width: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ReflectConv2d(in_channels, width, 7, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        channels = width
        for stage, blocks in enumerate(BLOCKS):
            out = width * 2**stage
            first = ResidualBlock(channels, out, stride=1 if stage == 0 else 2)
            self.stages.append(nn.Sequential(first, *(ResidualBlock(out, out) for _ in range(blocks - 1))))
            channels = out

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Rise(nn.Sequential):
    """Twice the size, then DoubleConv: (B, C_in, H, W) -> (B, C_out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, up: str) -> None:
        super().__init__(build_upsample(in_channels, in_channels, up), DoubleConv(in_channels, out_channels))


class ResNet34UNet(nn.Module):
    """Logits of the same height and width as the picture.

    width: channels of the encoder's first stage (64 is a ResNet34); the decoder is width / 2 channels wide
    up: "bilinear" or "transposed"

    Shape: (B, in_channels, H, W) -> (B, num_classes, H, W), H and W multiples of 32.
    Raises ValueError for other sizes.
    """

    def __init__(self, width: int = 64, up: str = "bilinear", num_classes: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        narrow = width // 2
        self.encoder = Encoder(width, in_channels)
        self.bridge = ResidualBlock(8 * width, 4 * width)
        # the last rise has no map of the encoder beside it
        skips = [8 * width, 4 * width, 2 * width, width, 0]
        below = [4 * width] + [narrow] * 4
        self.decoder = nn.ModuleList(Rise(b + s, narrow, up) for b, s in zip(below, skips, strict=True))
        self.segmentation_head = ReflectConv2d(narrow, num_classes, 3, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_size(x)
        maps = self.encoder(x)
        x = self.bridge(maps[-1])
        for rise in self.decoder[:-1]:
            x = rise(torch.cat([maps.pop(), x], dim=1))
        return self.segmentation_head(self.decoder[-1](x))
