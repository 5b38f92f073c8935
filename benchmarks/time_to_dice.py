"""How long training takes to reach a val Dice, over several seeds: what follows `--` are flags of petseg/train.py.

python -m benchmarks.time_to_dice --seeds 3 --dice 0.84 0.88 -- --data.shards data/shards --train.epochs 9
python -m benchmarks.time_to_dice --launch slurm/accelerate/eight_gpu.yaml --dice 0.9 0.93 -- --data.shards data/shards

Each seed is a run of its own, one after the other, started as a user starts it. The time to a Dice is that of training
and validation together; what comes before the first step (start of Python, imports, the model, compilation of its first
step left out) and after the last epoch (the protocol on val and test) stands beside it. The first seed decodes the
pictures into a fresh cache, the others find them there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from petseg.run_folder.layout import Result, load_result, read_metrics
from shards.command.flags import parse

REPOSITORY = Path(__file__).parent.parent
POLL_S = 0.02


@dataclass(frozen=True)
class BenchConfig:
    """Time training runs to a val Dice."""

    dice: tuple[float, ...] = (0.84, 0.88, 0.90)
    """Values of val Dice to reach."""
    seeds: int = 3
    """Runs, with train.seed 0, 1, ..."""
    launch: Path | None = None
    """A config file of `accelerate launch`, for several processes."""
    scratch: Path = Path(tempfile.gettempdir())
    """Where the runs and the decoded pictures lie while it goes on."""
    json: Path | None = None
    """Write what was measured to this file too."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds}: must be at least 1")
        if not all(0 < dice < 1 for dice in self.dice):
            raise ValueError(f"--dice {self.dice}: each must lie between 0 and 1")


@dataclass(frozen=True)
class Timed:
    """One run."""

    seed: int
    startup_s: float  # to the first step, the decoding of pictures included
    epochs: tuple[tuple[float, float], ...]  # of each: seconds of training and validation up to its end, val Dice
    finish_s: float  # after the last epoch
    result: Result

    def to_dice(self, dice: float) -> tuple[float, int] | None:
        """Seconds and epochs until val Dice was at least that; None if it never was."""
        reached = ((seconds, epoch) for epoch, (seconds, found) in enumerate(self.epochs, start=1) if found >= dice)
        return next(reached, None)

    @property
    def best(self) -> float:
        return max(found for _, found in self.epochs)


def time_run(config: BenchConfig, flags: Sequence[str], seed: int, scratch: Path) -> Timed:
    """Raises ValueError where the run does not end well; what it said is shown."""
    folder, log = scratch / f"seed{seed}", scratch / f"seed{seed}.log"
    start = ["accelerate", "launch", "--config_file", str(config.launch)] if config.launch else [sys.executable]
    command = [*start, "petseg/train.py", *flags, "--train.seed", str(seed), "--out", str(folder)]
    cache = {"PETSEG_CACHE": str(scratch / "cache")}
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file, env=os.environ | cache)
        first, last, count = 0.0, 0.0, 0
        while process.poll() is None:
            time.sleep(POLL_S)
            if (found := len(read_metrics(folder))) > count:
                count, last = found, time.perf_counter()
                first = first or last
    ended, result = time.perf_counter(), load_result(folder)
    if process.returncode or result is None:
        raise ValueError(f"seed {seed} ended with exit code {process.returncode}:\n{log.read_text()[-3000:]}")
    rows, epochs, seconds = read_metrics(folder), [], 0.0
    for row in rows:
        seconds += row["perf/seconds"] + row["perf/validation_s"]
        epochs.append((seconds, row["val/dice"]))
    return Timed(seed, first - began - epochs[0][0], tuple(epochs), ended - last, result)


def render(config: BenchConfig, runs: Sequence[Timed]) -> Table:
    title = f"{runs[0].result.device}, processes: {runs[0].result.world_size}; mean (sd) over {len(runs)} seeds"
    table = Table(title=title, title_justify="left")
    for column in ("val Dice", "reached by", "training and validation", "epochs"):
        table.add_column(column, justify="right")
    for dice in config.dice:
        reached = [found for run in runs if (found := run.to_dice(dice))]
        seconds, epochs = [s for s, _ in reached], [float(e) for _, e in reached]
        table.add_row(f"{dice:g}", f"{len(reached)} of {len(runs)}", spread(seconds, "s"), spread(epochs))
    return table


def spread(values: Sequence[float], unit: str = "") -> str:
    """71.2 (3.4) s"""
    if not values:
        return "-"
    sd = f" ({statistics.stdev(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4g}{sd} {unit}".rstrip()


def beside(runs: Sequence[Timed]) -> list[str]:
    """What a run costs besides, and what it ends with."""
    cold, warm = runs[0], [run.startup_s for run in runs[1:]]
    lines = [f"to the first step: {cold.startup_s:.1f} s with decoding of the pictures"]
    lines[0] += f", {spread(warm, 's')} with them decoded" if warm else ""
    lines.append(f"after the last epoch: {spread([run.finish_s for run in runs], 's')}")
    lines.append(f"all epochs: {spread([run.epochs[-1][0] for run in runs], 's')} of training and validation")
    lines.append(f"{spread([run.result.images_per_s for run in runs])} images/s in training, median epoch")
    lines.append(f"best val Dice: {spread([run.best for run in runs])}: {', '.join(f'{r.best:.4f}' for r in runs)}")
    return lines


def main(argv: Sequence[str]) -> None:
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    config = parse(BenchConfig, own, __doc__)
    console, runs = Console(width=None if sys.stdout.isatty() else 120), []
    with tempfile.TemporaryDirectory(dir=config.scratch) as scratch:
        for seed in range(config.seeds):
            runs.append(time_run(config, flags, seed, Path(scratch)))
            told = "  ".join(f"{seconds:.0f} s {dice:.4f}" for seconds, dice in runs[-1].epochs)
            console.print(f"seed {seed}: {told}", highlight=False)
    console.print(render(config, runs))
    for line in beside(runs):
        console.print(line, highlight=False)
    if config.json is not None:
        content: dict[str, Any] = {"flags": list(flags), "load": os.getloadavg(), "runs": [asdict(run) for run in runs]}
        config.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
