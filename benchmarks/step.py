"""What a step of training costs: the lab's eager float32 step, a public library's, and ours, taken in turns.

python -m benchmarks.step --json step.json
python -m benchmarks.step --image-size-px 256 --batch-size 64 --compiled
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_peers import Peer, Step, peers_of
from petseg.footprint.utilization import device_name
from petseg.run.accelerator import keep_freed_memory
from shards.command.flags import parse


@dataclass(frozen=True)
class BenchConfig:
    """Time training steps of both lab models."""

    image_size_px: int = 128
    batch_size: int = 8
    width: int = 64
    repeats: int = 5
    """Turns of which the median counts; one more goes before, to warm up."""
    steps: int = 1
    """Steps a turn; take more on a GPU."""
    threads: int = 1
    compiled: bool = False
    """Time our models under torch.compile too."""
    json: Path | None = None
    """Write the rows to this file too."""


@dataclass(frozen=True)
class Row:
    arch: str
    peer: str
    images_per_s: float
    against_lab: float
    """Time of a step, as a share of the lab's."""
    gflop_per_image: float
    """Forward and backward, multiplications and additions counted apart."""
    tflops: float
    first_s: float
    """The first step: what compilation costs is in it."""


def gflop_per_image(peer: Peer, image: torch.Tensor) -> float:
    """Count a forward and backward pass as torch does."""
    with FlopCounterMode(display=False) as counter:
        peer.model(image[:1].expand(2, -1, -1, -1)).sum().backward()
    peer.model.zero_grad()
    return counter.get_total_flops() / 2 / 1e9


def seconds_of(step: Step, image: torch.Tensor, target: torch.Tensor, count: int, wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(count):
        step(image, target)
    wait()
    return (time.perf_counter() - start) / count


def measure(arch: str, config: BenchConfig, device: torch.device) -> list[Row]:
    torch.manual_seed(0)
    size = config.image_size_px
    image = torch.randn(config.batch_size, 3, size, size, device=device)
    target = torch.randint(0, 2, (config.batch_size, size, size), device=device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    peers = peers_of(arch, config.width, config.compiled)
    steps = [peer.build_step(device) for peer in peers]
    first = [seconds_of(step, image, target, 1, wait) for step in steps]
    turns = [[seconds_of(step, image, target, config.steps, wait) for step in steps] for _ in range(config.repeats + 1)]
    medians = [statistics.median(column[1:]) for column in zip(*turns, strict=True)]
    rows = []
    for peer, first_s, median_s in zip(peers, first, medians, strict=True):
        gflop, images_per_s = gflop_per_image(peer, image), config.batch_size / median_s
        share = median_s / medians[0]
        rows.append(Row(arch, peer.name, images_per_s, share, gflop, gflop * images_per_s / 1e3, first_s))
    return rows


def main() -> None:
    config = parse(BenchConfig, None, __doc__)
    torch.set_num_threads(config.threads)
    keep_freed_memory()  # as in a run; the peers of this process gain by it as well
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    title = f"{device_name(device)}, batch {config.batch_size}, {config.image_size_px} px, width {config.width}"
    table = Table("model", "", "images/s", "time / lab's", "GFLOP an image", "TFLOP/s", "first step s", title=title)
    rows = []
    for arch in ("unet", "resnet34_unet"):
        for row in measure(arch, config, device):
            rows.append(row)
            numbers = (row.images_per_s, row.against_lab, row.gflop_per_image, row.tflops, row.first_s)
            table.add_row(row.arch, row.peer, *(f"{number:.3g}" for number in numbers))
    Console().print(table)
    if config.json:
        config.json.write_text(json.dumps({"device": title, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
