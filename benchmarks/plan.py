"""What the data order costs: a step's indices, start-up and memory, for sets from Oxford-IIIT Pet to 10^8 samples.

python -m benchmarks.plan --json plan.json

Each set is planned for one rank of 1,024 (of one for the small set) with a global batch of 4,096 (32); steps are taken
one after another across several windows, as training takes them, and at random, as a resume does.
"""

from __future__ import annotations

import json
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from petseg.data.plan import Batching, EpochOrder, MicroBatch, steps_per_epoch, train_plan
from shards.command.flags import parse


@dataclass(frozen=True)
class BenchConfig:
    """Time the plan of an epoch."""

    window_shards: int = 16
    steps: int = 2_000
    """Steps taken one after another."""
    resumes: int = 50
    """Resumes at random steps."""
    json: Path | None = None
    """Write the rows to this file too."""


@dataclass(frozen=True)
class Case:
    name: str
    shards: int
    samples_per_shard: int
    batch_size: int
    world_size: int


@dataclass(frozen=True)
class Row:
    name: str
    samples: int
    shards: int
    ranks: int
    start_ms: float
    """Building the order of an epoch."""
    step_mean_ms: float
    """A step's indices, mean over the steps: windows' permutations included."""
    step_median_ms: float
    step_worst_ms: float
    """The worst step enters a new window."""
    resume_ms: float
    """First step at a random place, median."""
    peak_mb: float
    """Peak of Python's and numpy's allocations."""


CASES = (
    Case("Oxford-IIIT Pet", 13, 255, 32, 1),
    Case("ImageNet", 1_282, 1_000, 4_096, 1_024),
    Case("10^8 samples", 100_000, 1_000, 4_096, 1_024),
)


def measure(case: Case, config: BenchConfig) -> Row:
    sizes = np.full(case.shards, case.samples_per_shard)
    total = steps_per_epoch(int(sizes.sum()), case.batch_size)

    def plan(first_step: int, order: EpochOrder) -> Iterator[MicroBatch]:
        return train_plan(order, Batching(case.batch_size, 1, case.world_size // 2, case.world_size), first_step)

    start = time.perf_counter()
    order = EpochOrder(sizes, config.window_shards, seed=0, epoch=1)
    start_ms = (time.perf_counter() - start) * 1e3
    steps = []
    parts = plan(0, order)
    for _ in range(min(config.steps, total)):
        start = time.perf_counter()
        next(parts)
        steps.append((time.perf_counter() - start) * 1e3)
    resumes = []
    for first in np.random.default_rng(0).integers(0, total, config.resumes):
        start = time.perf_counter()
        next(plan(int(first), order))
        resumes.append((time.perf_counter() - start) * 1e3)
    tracemalloc.start()  # apart from the timing, which it slows
    traced = EpochOrder(sizes, config.window_shards, seed=0, epoch=2)
    for part, _ in zip(plan(0, traced), range(20), strict=False):
        assert len(part.ids)
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return Row(
        name=case.name,
        samples=len(order),
        shards=case.shards,
        ranks=case.world_size,
        start_ms=start_ms,
        step_mean_ms=statistics.mean(steps),
        step_median_ms=statistics.median(steps),
        step_worst_ms=max(steps),
        resume_ms=statistics.median(resumes),
        peak_mb=peak_mb,
    )


def main() -> None:
    config = parse(BenchConfig, None, __doc__)
    rows = [measure(case, config) for case in CASES]
    table = Table(title=f"one rank's plan, windows of {config.window_shards} shards")
    for column in (
        "set",
        "samples",
        "shards",
        "ranks",
        "start ms",
        "step ms",
        "median",
        "worst",
        "resume ms",
        "peak MB",
    ):
        table.add_column(column, justify="left" if column == "set" else "right")
    for row in rows:
        numbers = (row.start_ms, row.step_mean_ms, row.step_median_ms, row.step_worst_ms, row.resume_ms)
        counts = (f"{row.samples:,}", f"{row.shards:,}", f"{row.ranks:,}")
        table.add_row(row.name, *counts, *(f"{n:.3f}" for n in numbers), f"{row.peak_mb:.1f}")
    Console().print(table)
    if config.json is not None:
        config.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
