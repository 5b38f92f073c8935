"""What petseg.estimate predicts of a step against what the step takes: each row is a real step in a fresh process.

python -m benchmarks.footprint --json footprint.json

Measured twice: by the tensors that are alive at each moment of the step (exact), and by the memory that the kernel gave
the process (libraries' workspaces and the allocator's gaps included).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from petseg.config import RunConfig
from petseg.config.values import config_from_dict, config_to_dict, with_values
from petseg.footprint.memory import footprint, measure_footprint
from petseg.models.build import build_model
from shards.command.flags import parse

MIB = 2**20
MODELS = (("unet", ""), ("resnet34_unet", ""), ("fpn", "tu-mobilenetv3_small_050"), ("segformer", "mit_b0"))
SHAPES = ((64, 16), (128, 16))  # pixels, samples


@dataclass(frozen=True)
class BenchConfig:
    """Compare the memory that is predicted with that which is measured."""

    json: Path | None = None
    """Write the rows to this file too."""
    width: int = 32
    """model.width of unet and resnet34_unet."""


@dataclass(frozen=True)
class Row:
    """MiB of a step beyond what the process had before the model was built."""

    name: str
    predicted: float
    alive: float
    resident: float


def measure_here(config: RunConfig, samples: int) -> dict[str, float]:
    """Peak bytes of tensors alive, and by how much the process's resident memory rose above that of an earlier step."""
    torch.set_num_threads(1)
    measure_footprint(config, build(config), 2)  # libraries load their code, and keep what they have prepared
    gc.collect()
    before = _status("VmRSS")
    model = build(config)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    found = measure_footprint(config, model, samples)
    return {"alive": found.peak_bytes, "resident": _status("VmHWM") - before}


def build(config: RunConfig) -> torch.nn.Module:
    model = build_model(config.model, image_size_px=config.data.image_size_px)
    return model.to(memory_format=torch.channels_last) if config.train.channels_last else model


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure_apart(config: RunConfig, samples: int) -> dict[str, float]:
    # freed memory goes back at once, or the highest mark would hold what nobody uses
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    request = json.dumps({"config": config_to_dict(config), "samples": samples})
    command = [sys.executable, "-m", "benchmarks.footprint", "--child"]
    done = subprocess.run(command, input=request, env=env, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        request: dict[str, Any] = json.load(sys.stdin)
        found = measure_here(config_from_dict(request["config"]), request["samples"])
        sys.stdout.write(json.dumps(found) + "\n")
        return
    bench = parse(BenchConfig, None, __doc__)
    table = Table(title="peak of a training step, MiB", title_justify="left")
    for column in ("", "predicted", "tensors alive", "off by", "resident", "off by"):
        table.add_column(column, justify="right" if column else "left")
    rows = []
    for (arch, encoder), (size, samples), precision in product(MODELS, SHAPES, ("no", "bf16")):
        values = {"model.arch": arch, "model.encoder": encoder, "model.width": bench.width}
        more = {"data.image_size_px": size, "train.mixed_precision": precision}
        config = with_values(RunConfig(), values | more)
        predicted = footprint(config, samples, "cpu").peak_bytes
        found = measure_apart(config, samples)
        name = f"{arch} {encoder} {size} px x {samples} {precision}"
        row = Row(name, predicted / MIB, found["alive"] / MIB, found["resident"] / MIB)
        rows.append(row)
        errors = [f"{row.predicted / truth - 1:+.1%}" for truth in (row.alive, row.resident)]
        table.add_row(
            name, *(f"{v:.1f}" for v in (row.predicted, row.alive)), errors[0], f"{row.resident:.1f}", errors[1]
        )
    Console(width=140).print(table)
    if bench.json:
        bench.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
