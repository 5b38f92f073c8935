"""Runs that are stopped in this process, and what two runs are compared by."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training import interrupt


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1].folder / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_clock(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(folder)]


def stop_when(patch: pytest.MonkeyPatch, *calls: int) -> None:
    """Interrupts are asked for at the boundaries of these numbers, from 1."""
    asked = itertools.count(1)
    patch.setattr(interrupt, "requested", lambda: next(asked) in calls)
