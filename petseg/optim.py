"""Optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from petseg.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `total_steps`: linear warm-up, then constant or a cosine to zero."""
    warmup_steps = math.ceil(config.warmup * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW; vectors (normalisation, biases) take no decoupled weight decay, as is the custom."""
    fused = next(model.parameters()).is_cuda
    if config.name == "adam":
        return torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay, fused=fused)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, fused=fused)
