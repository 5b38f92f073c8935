"""Checkpoints of a small model after some steps."""

from __future__ import annotations

from pathlib import Path

import torch

from petseg.config import ModelConfig
from petseg.config.training import OptimConfig
from petseg.models.build import build_model
from petseg.optim import build_optimizer
from petseg.run_folder.checkpoint import Learner, list_checkpoints, save_checkpoint


def build(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=4)).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(OptimConfig(name="adamw", weight_decay=0.1), model)
    step(model, optimizer, steps)
    return model, optimizer


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, times: int) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    for _ in range(times):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, number: int, best: int, steps: int = 1) -> None:
    state = {"epoch": number, "best": {"step": best}, "scaler": None}
    save_checkpoint(folder, number, Learner(*build(steps)), state)


def steps_in(folder: Path) -> list[int]:
    return [c.step for c in list_checkpoints(folder)]


def least(steps: int = 0) -> Learner:
    """Two weights and their optimizer after some steps: a tenth of the time where it does not matter what is saved."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(OptimConfig(name="adamw"), model)
    for _ in range(steps):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return Learner(model, optimizer)


def save_least(folder: Path, number: int, best: int) -> Path:
    """The checkpoint's folder."""
    save_checkpoint(folder, number, least(1), {"epoch": number, "best": {"step": best}})
    return list_checkpoints(folder)[-1].folder
