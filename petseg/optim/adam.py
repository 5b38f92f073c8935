"""Adam and AdamW, whose fused kernel takes tensors in channels_last on a CPU as they lie in memory.

torch's kernel walks through memory in one direction, and copies what is not contiguous before: of a step of
resnet34_unet with 8 pictures of 128 px these copies were a tenth. The same memory seen as (out, height, width, in) is
contiguous. Adam works on each number by itself, so that the updates are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch

from petseg.models.reflect import is_channels_last
from petseg.optim.eager import Eager, plain_step


class Adam(Eager, torch.optim.Adam):
    """torch.optim.Adam without copies of tensors in channels_last on a CPU."""

    step = plain_step(torch.optim.Adam)

    def _init_group(self, group: dict[str, Any], *tensors: list[torch.Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *tensors)  # which fills the lists, the weights first
        as_they_lie(*tensors[:4])
        return has_complex


class AdamW(Eager, torch.optim.AdamW):
    """torch.optim.AdamW without copies of tensors in channels_last on a CPU."""

    step = plain_step(torch.optim.AdamW)

    def _init_group(self, group: dict[str, Any], *tensors: list[torch.Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *tensors)
        as_they_lie(*tensors[:4])
        return has_complex


def as_they_lie(
    weights: list[torch.Tensor],
    gradients: list[torch.Tensor],
    averages: list[torch.Tensor],
    squares: list[torch.Tensor],
) -> None:
    """Replace what is in channels_last on a CPU by contiguous views, each weight together with what belongs to it."""
    if weights and weights[0].device.type != "cpu":
        return  # before the loop, which would keep a GPU waiting
    for number, row in enumerate(zip(weights, gradients, averages, squares, strict=True)):
        if all(t.ndim == 4 and is_channels_last(t) for t in row):
            views = [t.detach().permute(0, 2, 3, 1) for t in row]
            weights[number], gradients[number], averages[number], squares[number] = views
