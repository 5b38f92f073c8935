"""Turns decoded uint8 batches into inputs of a network and targets of its loss, on the device."""

from __future__ import annotations

import torch

from petseg.data.transfer import floats
from shards.classes import IGNORE_VALUE as IGNORE_INDEX  # target value of pixels that neither loss nor metrics count

__all__ = ["IGNORE_INDEX", "normalise", "to_classes", "to_image"]
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


def to_classes(labels: torch.Tensor, table: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """(B, H, W) uint8 labels -> (B, H, W) uint8 classes, IGNORE_INDEX where a pixel does not count.

    table: (R, 256) uint8, on the labels' device; rows: (B,) int64, the row that holds for each sample, if R > 1
    """
    if rows is None:
        return table[0].index_select(0, labels.flatten().int()).view(labels.shape)
    return table[rows[:, None, None], labels.long()]
