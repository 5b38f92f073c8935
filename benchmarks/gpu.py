"""What petseg reaches on the GPU that is here, in one command and one table, within so many minutes.

python -m benchmarks.gpu --minutes 9
python -m benchmarks.gpu --minutes 9 --shards data/shards

It needs no network, no wandb and no virtual environment, only what petseg imports, beside the machine's own torch. Each
part is a process of its own with a time limit (benchmarks.gpu_parts). Rows are written as they come: a part that fails
or runs out of time leaves what it has measured, and a part for which no time is left says so. Without a GPU it runs in
miniature on the CPU (--image-size-px 64 --width 4 --step-s 0.1), which tests the benchmark and measures nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from petseg.footprint.utilization import device_name
from shards.command.flags import parse

REPOSITORY = Path(__file__).parent.parent
MINUTES = 9.0  # what a machine is lent for, less a start


@dataclass(frozen=True)
class BenchConfig:
    """Measure steps, the training loop, estimates, exactness and accuracy per second on this machine's GPU."""

    minutes: float = MINUTES
    """All of it ends by then."""
    shards: str = ""
    """Shard set to train on, packed at --image-size-px or larger; by default pets are drawn."""
    pictures: int = 1600
    """Pets to draw where no shard set is given."""
    image_size_px: int = 256
    width: int = 64
    batch_sizes: tuple[int, ...] = (32, 128)
    """Samples of a step; the first one is that of the loop and of the runs."""
    dice: tuple[float, ...] = (0.90, 0.93)
    """Values of val Dice to time."""
    recipe: str = "fast"
    """Recipe of the run that they are timed in."""
    epochs: int = 0
    """Its epochs; 0 = as the recipe says."""
    step_s: float = 3.0
    """Seconds for which each kind of step is measured."""
    only: tuple[str, ...] = ()
    """Names of the parts to run; () = all."""
    out: Path = Path("benchmarks/gpu.json")
    """The rows so far, written anew after each; the table lies beside it, with the ending .md."""

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"--minutes {self.minutes}: must be positive")
        if unknown := set(self.only) - {part.name for part in PARTS}:
            raise ValueError(f"--only {', '.join(unknown)}: choose of {', '.join(part.name for part in PARTS)}")


@dataclass(frozen=True)
class Part:
    """A process of benchmarks.gpu_parts."""

    name: str
    limit_s: float  # at most, of MINUTES; less if less time is left
    fewest_s: float  # with less time left it is not begun


# in the order of what one wants to know first: what is last meets the end
PARTS = (
    Part("steps", 120, 30),
    Part("loop", 120, 30),
    Part("estimates", 60, 15),
    Part("exact", 100, 30),
    Part("dice", 200, 40),
    Part("compiled", 400, 60),
    Part("fused", 90, 40),
)


@dataclass(frozen=True)
class Row:
    """One figure."""

    part: str
    what: str
    value: float | str
    unit: str = ""
    beside: str = ""  # what it is to be compared with


@dataclass
class Report:
    """Rows on disk and on the terminal, from the first on."""

    config: BenchConfig
    device: str
    console: Console
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        value = row.value if isinstance(row.value, str) else f"{row.value:.4g}"
        self.console.print(f"{row.part:10} {row.what}: {value} {row.unit}  {row.beside}".rstrip(), highlight=False)
        content = {"device": self.device, "torch": torch.__version__, "rows": [asdict(row) for row in self.rows]}
        self.config.out.parent.mkdir(parents=True, exist_ok=True)
        self.config.out.write_text(json.dumps(content, indent=2) + "\n")
        self.config.out.with_suffix(".md").write_text(markdown(self.device, self.rows))


def markdown(device: str, rows: Sequence[Row]) -> str:
    lines = [f"## {device}, torch {torch.__version__}", "", "| part | what | value | beside |", "|---|---|---|---|"]
    for row in rows:
        value = row.value if isinstance(row.value, str) else f"{row.value:.4g}"
        lines.append(f"| {row.part} | {row.what} | {f'{value} {row.unit}'.strip()} | {row.beside} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    config: BenchConfig
    report: Report
    shards: str
    scratch: Path
    deadline: float  # by time.monotonic


def run_part(part: Part, bench: Bench) -> None:
    """Start the part's process and take its rows until it ends or its time is over."""
    report, left_s = bench.report, bench.deadline - time.monotonic()
    if left_s < part.fewest_s:
        report.add(Row(part.name, "left out", f"{left_s:.0f} s were left, it takes {part.fewest_s:.0f}"))
        return
    limit_s = min(part.limit_s * max(bench.config.minutes / MINUTES, 1), left_s)
    settings, log = bench.scratch / f"{part.name}.json", bench.scratch / f"{part.name}.log"
    shared = {"shards": bench.shards, "scratch": str(bench.scratch)}
    settings.write_text(json.dumps(shared | without_paths(bench.config)))
    command = [sys.executable, "-m", "benchmarks.gpu_parts", part.name, str(settings)]
    began = time.monotonic()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        killer = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))  # with the runs that it started
        killer.start()
        assert process.stdout is not None
        for line in process.stdout:
            report.add(Row(**json.loads(line)))
        code = process.wait()
        killer.cancel()
    took_s = time.monotonic() - began
    if not code:
        report.add(Row(part.name, "seconds in all", took_s, "s"))
        return
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    why = f"its limit of {limit_s:.0f} s" if code == -signal.SIGKILL else f"exit code {code}: {last[:200]}"
    report.add(Row(part.name, "ended early", why))


def without_paths(config: BenchConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if name not in ("out", "shards", "only")}


def draw_set(config: BenchConfig, scratch: Path) -> str:
    """A shard set of drawn pets."""
    out = scratch / "drawn"
    size = ("--image-size-px", str(config.image_size_px))
    words = ["-m", "shards.pack", "--synthetic", str(config.pictures), *size, "--out", str(out)]
    subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL, timeout=600)
    return str(out)


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(BenchConfig, argv, __doc__)
    deadline = time.monotonic() + 60 * config.minutes
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    console = Console(width=None if sys.stdout.isatty() else 160)
    report = Report(config, device, console)
    console.print(f"{device}, torch {torch.__version__}, {config.minutes:g} min", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        began = time.monotonic()
        shards = config.shards or draw_set(config, scratch)
        report.add(
            Row("data", shards if config.shards else f"{config.pictures} drawn pets", time.monotonic() - began, "s")
        )
        bench = Bench(config, report, shards, scratch, deadline)
        for part in PARTS:
            if not config.only or part.name in config.only:
                run_part(part, bench)
    table = Table("part", "what", "value", "beside", title=device)
    for row in report.rows:
        value = row.value if isinstance(row.value, str) else f"{row.value:.4g} {row.unit}"
        table.add_row(row.part, row.what, value, row.beside)
    console.print(table)
    console.print(f"{config.out} and {config.out.with_suffix('.md')}", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
