"""Runs that are stopped in this process, and what two runs are compared by."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petseg.config import RunConfig
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import Result, read_metrics
from petseg.training import interrupt
from petseg.training.loop import train
from shards.command import Interrupted


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


def stop_and_resume(config: RunConfig, folder: Path, boundary: int, match: str | None = None) -> Result:
    """The result of a run that is interrupted at that boundary between steps, from 1, and started again."""
    with pytest.MonkeyPatch.context() as patch:
        stop_when(patch, boundary)
        with pytest.raises(Interrupted, match=match):
            train(config, folder)
    return train(config, folder)


def require_same_bits(one: Path, other: Path) -> None:
    assert same(final_weights(one), final_weights(other))
    assert without_clock(one) == without_clock(other)
