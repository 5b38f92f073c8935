"""Segmentation models: (B, 3, H, W) float -> logits (B, num_classes, H, W)."""

from __future__ import annotations

from torch import nn

from petseg.config import ModelConfig
from petseg.models.resnet34_unet import ResNet34UNet
from petseg.models.unet import UNet

MODELS = {"unet": UNet, "resnet34_unet": ResNet34UNet}


def build_model(config: ModelConfig, num_classes: int = 2) -> nn.Module:
    """The model that the config names, with fresh weights from torch's global random state."""
    return MODELS[config.arch](width=config.width, up=config.up, num_classes=num_classes)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
