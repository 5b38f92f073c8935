"""Connected parts of masks."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # pixels that share a corner are connected


def keep_largest(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(B, H, W) uint8 classes -> the same, with all but the largest connected part of each class but 0 as class 0."""
    kept = torch.zeros_like(classes)
    for one in range(1, num_classes):
        kept[largest_components(classes == one)] = one
    return kept


def drop_small(classes: torch.Tensor, num_classes: int, min_area_px: int) -> torch.Tensor:
    """(B, H, W) uint8 classes -> the same, with connected parts of fewer pixels of each class but 0 as class 0."""
    kept = classes.cpu().numpy().copy()
    for picture in kept:
        for one in range(1, num_classes):
            labels, count = ndimage.label(picture == one, structure=_NEIGHBOURS)
            if count:
                small = np.bincount(labels.ravel(), minlength=count + 1) < min_area_px
                small[0] = False
                picture[small[labels]] = 0
    return torch.from_numpy(kept).to(classes.device)


def largest_components(masks: torch.Tensor) -> torch.Tensor:
    """Keep the largest connected part of each mask, and of equally large ones the first: (B, H, W) bool -> the same."""
    kept = np.zeros(masks.shape, dtype=bool)
    for mask, own in zip(masks.cpu().numpy(), kept, strict=True):
        labels, count = ndimage.label(mask, structure=_NEIGHBOURS)
        if count:
            own[:] = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return torch.from_numpy(kept).to(masks.device)
