"""torch's optimizers without what prepares them for torch.compile, which petseg applies to models alone.

Their methods import torch's compiler when they are first called. That takes 1.3 s of each process that trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


class Eager(torch.optim.Optimizer):
    """An optimizer that is never compiled. A subclass names this base before torch's own class."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


def plain_step(optimizer: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """The step of one of torch's optimizers; it records no gradients, as in torch unless `differentiable` is set."""
    step: Callable[..., Any] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return step


class SGD(Eager, torch.optim.SGD):
    step = plain_step(torch.optim.SGD)
