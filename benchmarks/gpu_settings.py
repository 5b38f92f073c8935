"""What the parts of benchmarks.gpu share: their settings, the device, and how they give their rows."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu import Row
from petseg.config import RunConfig
from petseg.config.values import with_values


@dataclass(frozen=True)
class Settings:
    """What benchmarks.gpu hands to a part."""

    shards: str
    scratch: str
    minutes: float
    pictures: int
    image_size_px: int
    width: int
    batch_sizes: list[int]
    dice: list[float]
    recipe: str
    epochs: int
    step_s: float

    def config(self, arch: str, batch: int, **changes: Any) -> RunConfig:
        encoder = {"model.encoder": "resnet34"} if arch == "smp_unet" else {"model.width": self.width}
        values = {
            "data.image_size_px": self.image_size_px,
            "model.arch": arch,
            "train.batch_size": batch,
            "train.mixed_precision": "bf16",
            **encoder,
        }
        return with_values(RunConfig(), values | {name.replace("__", "."): value for name, value in changes.items()})


def say(row: Row) -> None:
    sys.stdout.write(json.dumps(asdict(row)) + "\n")
    sys.stdout.flush()


def here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
