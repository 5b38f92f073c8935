"""Builds optimizers, and computes the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from petseg.config.training import OptimConfig
from petseg.models.encoders import encoder_parameters
from petseg.optim.adam import Adam, AdamW
from petseg.optim.eager import SGD
from petseg.optim.muon import Muon, hidden_weights

ONE_CYCLE_RISE = 0.3  # share of the steps, and the first rate as a share of the peak: torch's OneCycleLR
ONE_CYCLE_START = 1 / 25
POLY_POWER = 0.9  # DeepLab's (Chen et al. 2017)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `total_steps`: a warm-up, then the schedule.

    All schedules but the constant one reach zero at `total_steps`, the step after the last. one_cycle is Smith's (2018)
    with cosines, without his third phase and with a constant momentum.
    """
    one_cycle = config.schedule == "one_cycle"
    warmup_steps = math.ceil((config.warmup or ONE_CYCLE_RISE * one_cycle) * total_steps)
    if step < warmup_steps:
        risen = (step + 1) / warmup_steps
        return config.lr * (1 - (1 - ONE_CYCLE_START) * _half_cosine(risen) if one_cycle else risen)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    if config.schedule == "constant":
        return config.lr
    return config.lr * ((1 - progress) ** POLY_POWER if config.schedule == "poly" else _half_cosine(progress))


def _half_cosine(progress: float) -> float:
    """The falling half of a cosine: 1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of each parameter group to this rate times the group's lr_factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The config's optimizer of a (bare) model's parameters.

    With decoupled weight decay, vectors (normalisation, biases) have none, as is usual.
    Raises ValueError for encoder_lr_factor if the model has no separate encoder.
    """
    fused = True  # on a CPU too: AdamW steps a U-Net of width 16 in 1.2 ms instead of 3.0
    lr, decay = config.lr, config.weight_decay
    if config.name == "muon":
        hidden = hidden_weights(model)
        rest = [p for p in model.parameters() if all(p is not q for q in hidden)]
        groups = [{"params": hidden, "weight_decay": decay, "muon": True}, *_decay_groups(rest, decay)]
        return Muon(_split_encoder(groups, config, model), lr, fused=fused)
    if config.name == "adamw":
        groups = _split_encoder(_decay_groups(model.parameters(), decay), config, model)
        return AdamW(groups, lr, fused=fused)
    groups = _split_encoder([{"params": list(model.parameters())}], config, model)
    if config.name == "adam":
        return Adam(groups, lr, weight_decay=decay, fused=fused)
    momentum, nesterov = config.momentum, config.momentum > 0
    return SGD(groups, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=fused)


def _decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _split_encoder(groups: list[dict[str, Any]], config: OptimConfig, model: nn.Module) -> list[dict[str, Any]]:
    """The groups, each split into the encoder's parameters, with their factor, and the others, unless that is 1."""
    if config.encoder_lr_factor == 1:
        return [group for group in groups if group["params"]]
    encoder = {id(p) for p in encoder_parameters(model)}
    if not encoder:
        raise ValueError(
            f"optim.encoder_lr_factor = {config.encoder_lr_factor}: this model.arch has no encoder apart: leave it out"
        )
    cut = []
    for group in groups:
        for within, factor in ((True, config.encoder_lr_factor), (False, 1.0)):
            parameters = [p for p in group["params"] if (id(p) in encoder) == within]
            if parameters:
                cut.append(group | {"params": parameters, "lr_factor": factor})
    return cut
