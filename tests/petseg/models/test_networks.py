"""The lab's networks, computed a second time from their weights by torch's and torchvision's own operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet34

from petseg.config import ModelConfig
from petseg.models.build import build_model
from petseg.models.layers import DoubleConv, ReflectConv2d
from petseg.models.resnet34_unet import Encoder, ResidualBlock, ResNet34UNet
from petseg.models.unet import UNet


def network(arch: str, up: str, width: int) -> nn.Module:
    """In evaluation, with statistics and weights of BatchNorm that are not those of a fresh one."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch=arch, up=up, width=width), num_classes=3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.1, 0.1)
    return model


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def conv(x: torch.Tensor, layer: ReflectConv2d) -> torch.Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), layer.weight, layer.bias)


def norm(x: torch.Tensor, layer: nn.BatchNorm2d) -> torch.Tensor:
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)


def double(x: torch.Tensor, block: DoubleConv) -> torch.Tensor:
    first, first_norm, _, second, second_norm, _ = block
    x = norm(conv(x, first), first_norm).relu()
    return norm(conv(x, second), second_norm).relu()


def risen(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
@torch.no_grad()
def test_the_unet_is_that_of_its_paper(up: str) -> None:
    model = network("unet", up, 4)
    assert isinstance(model, UNet)
    maps = [double(picture(64, 96), model.stem)]
    for down in model.downs:
        maps.append(double(F.max_pool2d(maps[-1], 2), down[1]))
    x = maps.pop()
    for layer, merge in zip(model.ups, model.merges, strict=True):
        x = double(torch.cat([maps.pop(), risen(x, layer)], dim=1), merge)
    expected = F.conv2d(x, model.segmentation_head.weight, model.segmentation_head.bias)
    torch.testing.assert_close(model(picture(64, 96)), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_encoders_maps_are_those_of_torchvisions_resnet34() -> None:
    """torchvision's pads with zeros; it gets the reflected edge that the lab's has."""
    model = network("resnet34_unet", "bilinear", 64)
    assert isinstance(model.encoder, Encoder)
    theirs = resnet34().eval()
    theirs.fc = nn.Identity()
    own, other = model.encoder.state_dict(), theirs.state_dict()
    for (name, tensor), value in zip(other.items(), own.values(), strict=True):
        assert tensor.shape == value.shape, name
        tensor.copy_(value)
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "reflect"
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(picture(64, 64)))))
    maps = model.encoder(picture(64, 64))
    assert len(maps) == 4
    for stage, found in zip((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), maps, strict=True):
        x = stage(x)
        torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
@torch.no_grad()
def test_the_decoder_joins_each_map_of_the_encoder_with_what_rises_to_it(up: str) -> None:
    model = network("resnet34_unet", up, 8)
    assert isinstance(model, ResNet34UNet)
    maps = model.encoder(picture(64, 96))
    bridge = model.bridge
    assert isinstance(bridge, ResidualBlock)
    short, short_norm = bridge.shortcut
    deepest = maps[-1]
    y = norm(conv(norm(conv(deepest, bridge.conv1), bridge.norm1).relu(), bridge.conv2), bridge.norm2)
    x = (y + norm(F.conv2d(deepest, short.weight), short_norm)).relu()
    for layer, block in list(model.decoder)[:-1]:
        x = double(risen(torch.cat([maps.pop(), x], dim=1), layer), block)
    layer, block = model.decoder[-1]
    expected = conv(double(risen(x, layer), block), model.segmentation_head)
    torch.testing.assert_close(model(picture(64, 96)), expected, atol=1e-4, rtol=1e-4)
