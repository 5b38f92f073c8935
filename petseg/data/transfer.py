"""Small tensors from the host to the device, without waiting for it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike


def indices(numbers: ArrayLike, device: torch.device) -> torch.Tensor:
    """Whole numbers as int64."""
    return _sent(torch.from_numpy(np.asarray(numbers, dtype=np.int64)), device)


def floats(numbers: ArrayLike, device: torch.device) -> torch.Tensor:
    """Numbers as float32."""
    return _sent(torch.from_numpy(np.asarray(numbers, dtype=np.float32)), device)


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Only page-locked memory is copied while the host goes on."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
