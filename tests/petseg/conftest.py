"""Small real runs on drawn pets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from tests.wandb_server import KEY, WandbServer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors are quickest, and sums come out the same, with one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """What the client of this process and its children talks to."""
    server = WandbServer()
    for name in ("HTTP_PROXY", "http_proxy", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield server
    server.stop()


@pytest.fixture
def tiny(pet_shards: Path) -> Callable[..., RunConfig]:
    """A config that trains in a second; keyword arguments set dotted fields, with __ for the dot."""

    def build(**changes: Any) -> RunConfig:
        values = {
            "data.shards": str(pet_shards),
            "data.image_size_px": 64,
            "data.threads": 1,
            "model.width": 4,
            "train.epochs": 2,
            "train.batch_size": 8,
            "train.log_every": 2,
            "train.test": False,
            "tracking.overlays": 2,
        }
        return with_values(RunConfig(), values | {name.replace("__", "."): v for name, v in changes.items()})

    return build
