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

from petseg.models.reflect import is_channels_last
from petseg.optim.adam import as_they_lie
from petseg.optim.eager import Eager

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


class Muon(Eager):
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
        """Weights of one shape are stepped together, so that launches on a GPU grow with the shapes."""
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for same in by_shape.values():
            parameters: list[torch.Tensor] = list(same)
            gradients = [p.grad for p in same if p.grad is not None]
            momenta = [self._momentum(p) for p in same]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
            stacked = torch.stack([_as_matrix(update, weight) for update, weight in zip(ahead, same, strict=True)])
            matrices = orthogonal(stacked)
            updates = [_as_weight(matrix, weight) for matrix, weight in zip(matrices, same, strict=True)]
            rate = 0.2 * math.sqrt(max(matrices.shape[1:])) * group["lr"]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-rate)

    def _momentum(self, parameter: nn.Parameter) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum_buffer"]
        return momentum


def _as_matrix(update: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(out, in, height, width) -> (out, rest) in the order in which the weight lies in memory, without a copy.

    The order of the columns changes nothing about singular values.
    """
    return (update.permute(0, 2, 3, 1) if _lies_by_pixel(weight) else update).flatten(1)


def _as_weight(matrix: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The inverse of `_as_matrix`."""
    if _lies_by_pixel(weight):
        out_channels, channels, height, width = weight.shape
        return matrix.view(out_channels, height, width, channels).permute(0, 3, 1, 2)
    return matrix.view(weight.shape)


def _lies_by_pixel(weight: torch.Tensor) -> bool:
    return weight.ndim == 4 and is_channels_last(weight)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(n, M, N) with the same singular vectors and singular values near 1 (0.7 to 1.2), by Newton-Schulz iterations.

    They run in bfloat16, for which the polynomial was designed, on GPUs, which are fast at it, and in float32 on CPUs.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    a, b, c = _NS_COEFFICIENTS
    for _ in range(_NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).contiguous()
