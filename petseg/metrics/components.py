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


def largest_components(masks: torch.Tensor) -> torch.Tensor:
    """Keep the largest connected part of each mask, and of equally large ones the first: (B, H, W) bool -> the same."""
    kept = np.zeros(masks.shape, dtype=bool)
    for mask, own in zip(masks.cpu().numpy(), kept, strict=True):
        labels, count = ndimage.label(mask, structure=_NEIGHBOURS)
        if count:
            own[:] = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return torch.from_numpy(kept).to(masks.device)
