"""UNet (Ronneberger et al. 2015) with BatchNorm and size-keeping reflect padding, as the lab built it."""

from __future__ import annotations

import torch
from torch import nn

from petseg.models.layers import DoubleConv, build_upsample, check_size

STAGES = 4  # downsamplings, each doubling the channels


class UNet(nn.Module):
    """Logits of the same height and width as the picture.

    width: channels of the first stage (64 gives 64-128-256-512-1024)
    up: "bilinear" halves the bottleneck to keep the channels even (17.26 M parameters at width 64), "transposed"
        learns the upsampling (31.04 M)

    Shape: (B, in_channels, H, W) -> (B, num_classes, H, W), H and W multiples of 32.
    Raises ValueError for other sizes.
    """

    def __init__(self, width: int = 64, up: str = "bilinear", num_classes: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        channels = [width * 2**stage for stage in range(STAGES + 1)]
        if up == "bilinear":
            channels[-1] //= 2
        self.stem = DoubleConv(in_channels, width)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(channels[i], channels[i + 1])) for i in range(STAGES)
        )
        self.ups, self.merges = nn.ModuleList(), nn.ModuleList()
        below = channels[-1]
        for stage in reversed(range(STAGES)):
            skip = channels[stage]
            risen = below if up == "bilinear" else skip
            out = skip // 2 if up == "bilinear" and stage > 0 else skip
            self.ups.append(build_upsample(below, risen, up))
            self.merges.append(DoubleConv(skip + risen, out, mid_channels=skip))
            below = out
        self.segmentation_head = nn.Conv2d(below, num_classes, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_size(x)
        x = self.stem(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.segmentation_head(x)
