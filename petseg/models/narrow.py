"""Structured pruning: the channels of a trained network that matter most, as the same network at a smaller width.

Each space of channels (what a convolution writes, and everything that reads it) keeps its strongest channels, as many
as the narrow network has there. So the result is dense and needs no masks. How strong a channel is, BatchNorm tells
without any pictures, as in network slimming (Liu et al. 2017): its output has the mean `bias` and the standard
deviation `weight`, so the mean of its ReLU is known. What a residual stream adds up has no ReLU of its own, and counts
by its root mean square, over all blocks that write the stream. Convolutions without BatchNorm count by their L1 norm
(Li et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from petseg.models.layers import BilinearUpsample
from petseg.models.resnet34_unet import ResNet34UNet
from petseg.models.unet import UNet

Kept = torch.Tensor  # (C_kept,) int64, ascending: the channels of a space that stay


@torch.no_grad()
def narrow(wide: nn.Module, slim: nn.Module) -> None:
    """Give a network of smaller width the strongest channels of a wide one of the same architecture.

    At the same width nothing changes. Raises ValueError for an architecture that has no width.
    """
    cut = NARROWED.get(type(wide))
    if cut is None or type(slim) is not type(wide):
        raise ValueError(f"{type(wide).__name__} has no width: only unet and resnet34_unet can be pruned")
    cut(wide, slim)


def _narrow_unet(wide: Any, slim: Any) -> None:
    x = _double_conv(wide.stem, slim.stem, _all(3))
    skips: list[tuple[Kept, int]] = []
    for big, small in zip(wide.downs, slim.downs, strict=True):
        skips.append((x, big[1][0].in_channels))
        x = _double_conv(big[1], small[1], x)
    for position, (big, small) in enumerate(zip(wide.merges, slim.merges, strict=True)):
        skip, skip_channels = skips.pop()
        risen = _upsample(wide.ups[position], slim.ups[position], x)
        x = _double_conv(big, small, torch.cat([skip, skip_channels + risen]))
    _conv(wide.segmentation_head, slim.segmentation_head, x, _all(wide.segmentation_head.out_channels))


def _narrow_resnet34_unet(wide: Any, slim: Any) -> None:
    big, small = wide.encoder, slim.encoder
    maps: list[tuple[Kept, int]] = []
    x = _all(3)
    for number, (stage, slim_stage) in enumerate(zip(big.stages, small.stages, strict=True)):
        writers = [block.norm2 for block in stage]
        writers += [big.stem[1]] if number == 0 else [stage[0].shortcut[1]]
        stream = _strongest(sum(_root_mean_square(one) for one in writers), slim_stage[0].norm2.num_features)
        if number == 0:  # the first stage adds to what the stem writes
            _conv(big.stem[0], small.stem[0], x, stream)
            _norm(big.stem[1], small.stem[1], stream)
            x = stream
        for block, slim_block in zip(stage, slim_stage, strict=True):
            _residual_block(block, slim_block, x, stream)
            x = stream
        maps.append((x, stage[0].norm2.num_features))
    bridge = wide.bridge
    out = _strongest(
        _root_mean_square(bridge.norm2) + _root_mean_square(bridge.shortcut[1]), slim.bridge.norm2.num_features
    )
    _residual_block(bridge, slim.bridge, x, out)
    x = out
    for rise, slim_rise in zip(wide.decoder, slim.decoder, strict=True):
        if maps:
            skip, skip_channels = maps.pop()
            x = torch.cat([skip, skip_channels + x])
        x = _double_conv(rise[1], slim_rise[1], _upsample(rise[0], slim_rise[0], x))
    _conv(wide.segmentation_head, slim.segmentation_head, x, _all(wide.segmentation_head.out_channels))


NARROWED: dict[type, Callable[[Any, Any], None]] = {UNet: _narrow_unet, ResNet34UNet: _narrow_resnet34_unet}


def _double_conv(wide: Any, slim: Any, x: Kept) -> Kept:
    """Cut a DoubleConv that reads the channels x; returns those that it writes."""
    for conv, norm in ((0, 1), (3, 4)):
        out = _strongest(_mean_activation(wide[norm]), slim[norm].num_features)
        _conv(wide[conv], slim[conv], x, out)
        _norm(wide[norm], slim[norm], out)
        x = out
    return x


def _residual_block(wide: Any, slim: Any, x: Kept, out: Kept) -> None:
    middle = _strongest(_mean_activation(wide.norm1), slim.norm1.num_features)
    _conv(wide.conv1, slim.conv1, x, middle)
    _norm(wide.norm1, slim.norm1, middle)
    _conv(wide.conv2, slim.conv2, middle, out)
    _norm(wide.norm2, slim.norm2, out)
    if not isinstance(wide.shortcut, nn.Identity):
        _conv(wide.shortcut[0], slim.shortcut[0], x, out)
        _norm(wide.shortcut[1], slim.shortcut[1], out)


def _upsample(wide: nn.Module, slim: nn.Module, x: Kept) -> Kept:
    """The channels after it: interpolation keeps them, a transposed convolution has (C_in, C_out, 2, 2) of its own."""
    if isinstance(wide, BilinearUpsample):
        return x
    assert isinstance(wide, nn.ConvTranspose2d)
    assert isinstance(slim, nn.ConvTranspose2d)
    out = _strongest(wide.weight.abs().sum(dim=(0, 2, 3)), slim.out_channels)
    slim.weight.copy_(wide.weight[x][:, out])
    assert slim.bias is not None
    assert wide.bias is not None
    slim.bias.copy_(wide.bias[out])
    return out


def _conv(wide: nn.Conv2d, slim: nn.Conv2d, x: Kept, out: Kept) -> None:
    slim.weight.copy_(wide.weight[out][:, x])
    if wide.bias is not None:
        assert slim.bias is not None
        slim.bias.copy_(wide.bias[out])


def _norm(wide: nn.BatchNorm2d, slim: nn.BatchNorm2d, kept: Kept) -> None:
    slim_state = slim.state_dict()
    for name, tensor in wide.state_dict().items():
        slim_state[name].copy_(tensor[kept] if tensor.ndim else tensor)


def _mean_activation(norm: nn.BatchNorm2d) -> torch.Tensor:
    """(C,) mean of ReLU(bias + weight z) with z normally distributed."""
    deviation, mean = norm.weight.double().abs(), norm.bias.double()
    ratio = mean / deviation.clamp(min=torch.finfo(torch.float32).tiny)
    density = torch.exp(-(ratio**2) / 2) / (2 * torch.pi) ** 0.5
    return deviation * density + mean * torch.special.ndtr(ratio)


def _root_mean_square(norm: nn.BatchNorm2d) -> torch.Tensor:
    """(C,) of bias + weight z."""
    return torch.hypot(norm.weight.double(), norm.bias.double())


def _strongest(strength: Any, count: int) -> Kept:
    """The channels of the largest strength, in their order; of equal ones the first."""
    return strength.sort(descending=True, stable=True).indices[:count].sort().values


def _all(count: int) -> Kept:
    return torch.arange(count)
