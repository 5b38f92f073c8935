"""Muon for convolutional networks (Jordan et al. 2024): the update of a weight is its orthogonalised momentum.

torch.optim.Muon takes only matrices; most weights here are (out, in, height, width), and are treated as matrices
(out, in * height * width). The numbers are those of torch.optim.Muon with adjust_lr_fn="match_rms_adamw" (Liu et al.
2025), so that a learning rate and a weight decay for AdamW suit it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from petseg.optim.adam import as_they_lie

MOMENTUM = 0.95
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_STEPS = 5
_EPS = 1e-7


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights of all convolutions and linear layers but the first and the last, which belong to inputs and classes.

    Frozen weights are left out, and depthwise convolutions: their filters share no input, so that there is nothing to
    orthogonalise.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    weights = [m.get_parameter("weight") for m in layers[1:-1] if getattr(m, "groups", 1) == 1]
    return [weight for weight in weights if weight.requires_grad]


class Muon(torch.optim.Optimizer):
    """Updates parameter groups with `muon` set by Muon, all others by AdamW."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, fused: bool) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "muon": False, "fused": fused})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "nobody here evaluates the model again within a step"
        for group in self.param_groups:
            if group["muon"]:
                self._orthogonal_step(group)
            else:
                self._adamw_step(group)

    def _adamw_step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                device = parameter.device if group["fused"] else None
                self.state[parameter] = {"step": torch.zeros((), device=device), **zeros}
        states = [self.state[parameter] for parameter in parameters]
        weights: list[torch.Tensor] = list(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        averages, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        as_they_lie(weights, gradients, averages, squares)
        adamw(
            weights,
            gradients,
            averages,
            squares,
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False, beta1=0.9, beta2=0.999, lr=group["lr"], weight_decay=group["weight_decay"], eps=1e-8,
            maximize=False,
        )  # fmt: skip

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            update = orthogonal(parameter.grad.lerp(momentum, MOMENTUM).flatten(1))  # Nesterov's
            rate = 0.2 * math.sqrt(max(update.shape)) * group["lr"]
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view(parameter.shape), alpha=-rate)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """(M, N) with the same singular vectors, and singular values near 1 (0.7 to 1.2), by the Newton-Schulz iteration.

    It runs in bfloat16, for which the polynomial was designed, on GPUs, which are fast at it, and in float32 on CPUs.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=_EPS)
    a, b, c = _NS_COEFFICIENTS
    for _ in range(_NS_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
