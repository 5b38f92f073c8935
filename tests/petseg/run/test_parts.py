"""Running statistics of several ranks become one model's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from petseg.run.parts import Parts


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_ranks_average_their_running_statistics_and_nothing_else(world_size: int) -> None:
    """The other rank has 2 more of each; with one rank nobody is asked."""
    norm = nn.BatchNorm2d(3)
    norm.running_mean = torch.tensor([1.0, 2.0, 3.0])
    averages = torch.tensor([10.0])

    def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert (reduction, world_size) == ("mean", 2)
        return tensor + 1

    parts: Any = SimpleNamespace(
        bare_model=norm, ema=SimpleNamespace(buffers=lambda: [averages]), world_size=world_size,
        accelerator=SimpleNamespace(reduce=reduce),
    )  # fmt: skip
    parts.float_buffers = lambda: Parts.float_buffers(parts)
    Parts.sync_buffers(parts)
    more = world_size - 1
    assert norm.running_mean.tolist() == [1.0 + more, 2.0 + more, 3.0 + more]
    assert norm.running_var is not None
    assert norm.running_var.tolist() == [1.0 + more] * 3
    assert averages.tolist() == [10.0 + more]
    assert norm.num_batches_tracked == 0
    assert norm.weight.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("batch_size", "world_size", "steps", "samples"), [(8, 1, 1, 8), (8, 2, 2, 2), (9, 2, 1, 5), (1, 4, 1, 1)]
)
def test_evaluation_takes_as_many_samples_as_a_pass_of_training(
    batch_size: int, world_size: int, steps: int, samples: int
) -> None:
    train = SimpleNamespace(batch_size=batch_size, accumulation_steps=steps)
    parts: Any = SimpleNamespace(config=SimpleNamespace(train=train), world_size=world_size)
    assert Parts.eval_batch_size.fget(parts) == samples  # type: ignore[attr-defined]
