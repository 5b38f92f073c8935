"""A model by its config."""

from __future__ import annotations

import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.config.sizes import ImageSize
from petseg.models.encoders import DECODERS, build_encoder_model
from petseg.models.resnet34_unet import ResNet34UNet
from petseg.models.unet import UNet

MODELS = {"unet": UNet, "resnet34_unet": ResNet34UNet}


def build_model(
    config: ModelConfig, num_classes: int = 2, image_size_px: ImageSize = 256, pretrained: bool = True
) -> nn.Module:
    """The model that the config names, with fresh weights from torch's global random state.

    image_size_px: size of the pictures as in data.image_size_px, for encoders that are built for one size
    pretrained: load the encoder's weights that the config names; without it, they come from a checkpoint or from
        petseg.models.pretrained.load_pretrained
    Raises ValueError for an encoder or weights that cannot be had.
    """
    if config.arch not in DECODERS:
        return MODELS[config.arch](width=config.width, up=config.up, num_classes=num_classes)
    model = build_encoder_model(config, num_classes, image_size_px)
    with_numbers = torch.get_default_device().type != "meta"
    if pretrained and config.weights != "none" and with_numbers:
        from petseg.models.pretrained import load_pretrained  # safetensors and the hub's client, if they are needed

        load_pretrained(config, model)
    return model


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
