"""Turns decoded uint8 batches into inputs of a network and targets of its loss, on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from petseg.data.transfer import floats

IGNORE_INDEX = 255  # target value of pixels that neither loss nor metrics count
# mean and standard deviation of ImageNet's pictures (RGB, 0-1): the convention of pretrained encoders
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def to_image(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in 0-255 on the device, in channels_last memory."""
    return image.to(device, non_blocking=True).permute(0, 3, 1, 2).float()


def normalise(image: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """(B, 3, H, W) float in 0-255 -> zero mean and unit variance over ImageNet."""
    mean, std = (floats(values, image.device).view(1, 3, 1, 1) * 255 for values in (_MEAN, _STD))
    normal = (image - mean) / std
    return normal.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def build_target(labels: torch.Tensor, border: str, values: Mapping[str, int]) -> torch.Tensor:
    """(B, H, W) uint8 labels -> int64 target: 1 pet, 0 background, 255 ignored; `border` is the rule for the border.

    values: the trimap's values by name, as the manifest's source lists them
    """
    target = (labels == values["pet"]).long().masked_fill_(labels == IGNORE_INDEX, IGNORE_INDEX)
    is_border = labels == values["border"]
    if border == "fg":
        return target.masked_fill_(is_border, 1)
    if border == "ignore":
        return target.masked_fill_(is_border, IGNORE_INDEX)
    return target
