"""Pruned networks: the same function where nothing that counts is removed, and one cut for all that read a channel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.models.build import build_model
from petseg.models.layers import DoubleConv
from petseg.models.narrow import _mean_activation, narrow
from petseg.models.resnet34_unet import ResidualBlock, ResNet34UNet

MODELS = [(arch, up) for arch in ("unet", "resnet34_unet") for up in ("bilinear", "transposed")]


def built(arch: Any, width: int, up: Any = "bilinear", seed: int = 0) -> nn.Module:
    """A network whose every tensor is random, BatchNorm's statistics too."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(arch=arch, width=width, up=up), num_classes=3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("arch", "up"), MODELS)
@torch.no_grad()
def test_the_whole_width_is_the_same_function_to_the_bit(arch: str, up: str, picture: torch.Tensor) -> None:
    wide, same = built(arch, 8, up), built(arch, 8, up, seed=5)
    assert not torch.equal(wide(picture), same(picture))
    narrow(wide, same)
    assert torch.equal(wide(picture), same(picture))
    ours = same.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in wide.state_dict().items())


@pytest.mark.parametrize("arch", ["unet", "resnet34_unet"])
@torch.no_grad()
def test_channels_that_are_zero_change_nothing_when_they_go(arch: str, picture: torch.Tensor) -> None:
    """Half of each space writes zeros and is read with any weights, across skip connections and residual streams."""
    wide = built(arch, 8)
    silence(wide, 0.5)
    slim = built(arch, 4, seed=5)
    narrow(wide, slim)
    torch.testing.assert_close(slim(picture), wide(picture), rtol=1e-4, atol=1e-4)
    assert wide(picture).std() > 0.01


def silence(model: nn.Module, share: float) -> None:
    """Every space loses random channels, the same ones in all that write it."""
    streams: dict[int, torch.Tensor] = {}

    def mute(norm: nn.BatchNorm2d, chosen: torch.Tensor) -> None:
        norm.weight[chosen] = 0
        norm.bias[chosen] = 0

    def some(count: int) -> torch.Tensor:
        return torch.randperm(count)[: int(share * count)]

    for module in model.modules():
        if isinstance(module, DoubleConv):
            mute(module[1], some(module[1].num_features))
            mute(module[4], some(module[4].num_features))
        if isinstance(module, ResidualBlock):
            mute(module.norm1, some(module.norm1.num_features))
    if isinstance(model, ResNet34UNet):
        for number, stage in enumerate(model.encoder.stages):
            streams[number] = some(stage[0].norm2.num_features)
            for block in stage:
                mute(block.norm2, streams[number])
                if isinstance(block.shortcut, nn.Sequential):
                    mute(block.shortcut[1], streams[number])
        mute(model.encoder.stem[1], streams[0])
        out = some(model.bridge.norm2.num_features)
        mute(model.bridge.norm2, out)
        mute(model.bridge.shortcut[1], out)


@torch.no_grad()
def test_the_channels_of_the_largest_mean_activation_stay() -> None:
    wide, slim = built("unet", 8), built("unet", 2)
    norm = wide.stem[4]
    norm.weight.fill_(1.0)
    norm.bias.copy_(torch.tensor([0.0, -9.0, 3.0, 0.1, -9.0, 0.0, 4.0, 0.0]))
    narrow(wide, slim)
    assert torch.equal(slim.stem[4].bias, norm.bias[[2, 6]])
    # the first merge that reads them: skips first, then what rises
    assert torch.equal(slim.merges[-1][0].weight[:, :2], kept_rows(wide, slim)[:, [2, 6]])


def kept_rows(wide: Any, slim: Any) -> torch.Tensor:
    """The filters of the last merge that stay, by the biases of their BatchNorm."""
    biases = wide.merges[-1][1].bias
    rows = [int((biases == one).nonzero()) for one in slim.merges[-1][1].bias]
    return wide.merges[-1][0].weight[rows]


def test_the_mean_activation_is_that_of_a_normal_distribution() -> None:
    """By a sum over the density of z; a weight of 0 leaves the bias, or nothing of a negative one."""
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5, 0.0, 0.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.0, -1.0, 0.3, 2.0, -2.0, -4.0]))
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    reached = (norm.bias.double()[:, None] + norm.weight.double()[:, None] * z).clamp(min=0)
    torch.testing.assert_close(_mean_activation(norm), (reached * density).sum(dim=1), rtol=1e-4, atol=1e-6)


def writers_of(model: Any) -> dict[str, list[nn.BatchNorm2d]]:
    """What writes into each residual stream of a ResNet34-UNet, and into its bridge."""
    found = {"bridge": [model.bridge.norm2, model.bridge.shortcut[1]]}
    for number, stage in enumerate(model.encoder.stages):
        first = model.encoder.stem[1] if number == 0 else stage[0].shortcut[1]
        found[f"stage {number}"] = [first, *(block.norm2 for block in stage)]
    return found


@pytest.mark.parametrize("space", ["bridge", *(f"stage {number}" for number in range(4))])
@torch.no_grad()
def test_every_writer_of_a_stream_has_a_say_in_which_channels_stay(space: str) -> None:
    """One of them writes into the second half of the channels, and the others nothing."""
    wide, slim = built("resnet34_unet", 4), built("resnet34_unet", 2)
    writers = writers_of(wide)[space]
    for loud in range(len(writers)):
        for number, norm in enumerate(writers):
            norm.weight.zero_()
            norm.bias.zero_()
            if number == loud:
                norm.bias[norm.num_features // 2 :] = -torch.arange(1.0, norm.num_features // 2 + 1)
        narrow(wide, slim)
        kept = writers_of(slim)[space][loud].bias
        assert torch.equal(kept, -torch.arange(1.0, len(kept) + 1))


def test_an_architecture_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no width: only unet and resnet34_unet can be pruned"):
        narrow(nn.Linear(2, 2), nn.Linear(2, 2))
