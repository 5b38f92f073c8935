"""Connected parts of masks."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # pixels that share a corner are connected


def largest_components(masks: torch.Tensor) -> torch.Tensor:
    """Keep the largest connected part of each mask, and of equally large ones the first: (B, H, W) bool -> the same."""
    kept = np.zeros(masks.shape, dtype=bool)
    for mask, own in zip(masks.cpu().numpy(), kept, strict=True):
        labels, count = ndimage.label(mask, structure=_NEIGHBOURS)
        if count:
            own[:] = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return torch.from_numpy(kept).to(masks.device)
