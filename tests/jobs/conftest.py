"""Sweeps small enough to run for real."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = {
    "data.image_size_px": 64,
    "model.width": 4,
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.mixed_precision": "no",
    "tracking.overlays": 2,
}


@pytest.fixture
def tiny_sweep(pet_shards: Path, tmp_path: Path) -> list[str]:
    """Flags of jobs/sweep.py: two trials of a second or two, in tmp_path/runs/lab."""
    settings = {"data.shards": str(pet_shards), **TINY}
    flags = ["--runs-dir", str(tmp_path / "runs"), "--axis", "augment.policy=none", "--axis", "train.seed=0"]
    for name, value in settings.items():
        flags += ["--set", f"{name}={value}"]
    return flags
