"""What it takes to change a picture and its mask: petseg's policies and their peers, on one core.

python -m benchmarks.augment --json augment.json

Every way changes every pair of the same batch. petseg's time holds the draws, uint8 to float, and the changes. Peers
are called pair by pair on uint8, as in a data set, but for kornia, which takes a batch of floats and has rows where it
is installed. All rows take turns in every run; the time is that of the processor, so that neighbours count little.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch

from petseg.augment.batch import apply
from petseg.augment.draws import draw
from petseg.config import AugmentConfig
from petseg.data.inputs import to_image
from shards.command.flags import parse

LIMIT_MS = 5.0  # an elastic pair of 256 px
MIN_SPEEDUP = 10.0  # over torchvision's elastic transform
POLICIES = [name for name in get_args(get_type_hints(AugmentConfig)["policy"]) if name != "none"]
REFERENCE = "torchvision ElasticTransform"

Way = Callable[[int], object]  # called with the number of the run


@dataclass(frozen=True)
class BenchConfig:
    """Time augmentation of pairs of picture and mask."""

    image_size_px: int = 256
    """Side of the pictures."""
    batch_size: int = 16
    """Pairs of a batch."""
    runs: int = 7
    """Runs of all rows; medians are shown."""
    json: Path | None = None
    """Write the rows to this file too."""


@dataclass(frozen=True)
class Row:
    """One way of changing a batch."""

    name: str
    ms_per_pair: float
    fastest: float  # of the runs, ms per pair
    slowest: float
    speedup: float  # over torchvision's elastic transform


def petseg_way(policy: Any, image: torch.Tensor, trimap: torch.Tensor) -> Way:
    """image (B, H, W, 3) and trimap (B, H, W) uint8, as the loader gives them."""
    config = AugmentConfig(policy=policy, p=1.0)
    ids, size, cpu = np.arange(len(image)), image.shape[1], torch.device("cpu")
    return lambda run: apply(draw(config, ids, 0, run, size), to_image(image, cpu), trimap, config)


def torchvision_ways(image: torch.Tensor, trimap: torch.Tensor) -> dict[str, Way]:
    """Its v2 transforms of a pair, with petseg's strengths."""
    from torchvision import tv_tensors  # type: ignore[import-untyped, unused-ignore]  # no types
    from torchvision.transforms import v2  # type: ignore[import-untyped, unused-ignore]  # no types

    pictures = [tv_tensors.Image(picture.permute(2, 0, 1).contiguous()) for picture in image]
    pairs = list(zip(pictures, map(tv_tensors.Mask, trimap), strict=True))
    transforms = {
        REFERENCE: v2.ElasticTransform(alpha=30.0, sigma=5.0),
        "torchvision RandomAffine": v2.RandomAffine(20, scale=(0.7, 1.4), interpolation=v2.InterpolationMode.BILINEAR),
        "torchvision RandomResizedCrop": v2.RandomResizedCrop(image.shape[1], scale=(0.5, 1), ratio=(1, 1)),
        "torchvision RandomHorizontalFlip": v2.RandomHorizontalFlip(p=1.0),
        "torchvision ColorJitter": v2.ColorJitter(0.3, 0.3, 0.3, 0.04),
        "torchvision GaussianBlur": v2.GaussianBlur(7, sigma=(0.5, 1.0)),
    }

    def call(transform: Callable[..., object], run: int) -> None:
        for pair in pairs:
            transform(*pair)

    return {name: functools.partial(call, transform) for name, transform in transforms.items()}


def kornia_ways(image: torch.Tensor, trimap: torch.Tensor) -> dict[str, Way]:
    if importlib.util.find_spec("kornia") is None:
        return {}
    from kornia import augmentation  # type: ignore[import-not-found, unused-ignore]  # an extra

    pictures, masks = image.permute(0, 3, 1, 2).float().contiguous() / 255, trimap.unsqueeze(1).float()
    strengths = {"kernel_size": (31, 31), "sigma": (5.0, 5.0), "alpha": (30.0, 30.0)}
    transforms = {
        "kornia RandomElasticTransform, batched": augmentation.RandomElasticTransform(p=1.0, **strengths),
        "kornia RandomAffine, batched": augmentation.RandomAffine(20, scale=(0.7, 1.4), p=1.0),
    }

    def call(transform: Any, run: int) -> None:
        augmentation.AugmentationSequential(transform, data_keys=["input", "mask"])(pictures, masks)

    return {name: functools.partial(call, transform) for name, transform in transforms.items()}


def measure(config: BenchConfig) -> list[Row]:
    random, size = torch.Generator().manual_seed(0), config.image_size_px
    image = torch.randint(0, 256, (config.batch_size, size, size, 3), dtype=torch.uint8, generator=random)
    trimap = torch.randint(1, 4, (config.batch_size, size, size), dtype=torch.uint8, generator=random)
    ways = {f"petseg {policy}": petseg_way(policy, image, trimap) for policy in POLICIES}
    ways |= torchvision_ways(image, trimap) | kornia_ways(image, trimap)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(config.runs + 1):
        for name, way in ways.items():
            start = time.thread_time()
            way(run)
            if run:  # the first run loads what is needed
                times[name].append(1000 * (time.thread_time() - start) / config.batch_size)
    reference = statistics.median(times[REFERENCE])
    return [
        Row(name, median := statistics.median(ms), min(ms), max(ms), reference / median) for name, ms in times.items()
    ]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    config = parse(BenchConfig, None, __doc__)
    torch.set_num_threads(1)
    rows = measure(config)
    elastic = next(row for row in rows if row.name == "petseg elastic")
    held = elastic.ms_per_pair <= LIMIT_MS and elastic.speedup >= MIN_SPEEDUP
    table = Table(
        title=f"picture + mask of {config.image_size_px} px, batches of {config.batch_size}, CPU time of one core, "
        f"median of {config.runs} runs; elastic within {LIMIT_MS:g} ms and {MIN_SPEEDUP:g} times as fast as "
        f"torchvision's: {'yes' if held else 'NO'}"
    )
    for column in ("way", "ms per pair", "fastest to slowest", "times as fast as torchvision's elastic"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        spread = f"{row.fastest:.2f} to {row.slowest:.2f}"
        table.add_row(row.name, f"{row.ms_per_pair:.2f}", spread, f"{row.speedup:.1f}")
    Console().print(table)
    if config.json is not None:
        facts = asdict(config) | {"json": None, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        config.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
