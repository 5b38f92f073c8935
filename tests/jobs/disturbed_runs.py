"""Runs and sweeps of their own processes, to be disturbed, and what is compared of them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from petseg.run_folder.layout import read_metrics
from tests.jobs.faulty_checkout import REPOSITORY, finish, start

RECORDING = REPOSITORY / "tests" / "petseg" / "recording_train.py"
LOCAL = ["--cluster", "local", "--axis", "model.arch=unet", "--set", "train.log_every=1"]
PAIR = [*LOCAL, "--gpus", "0", "--tasks-per-node", "2"]
CALM = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}


def record(shards: Path, folder: Path, stop: str = "", ranks: int = 1, **flags: object) -> subprocess.Popen[str]:
    """`petseg/train.py` on its own, which sends itself a signal at SIGNAL:RANK:EPOCH:STEP."""
    command = [sys.executable, str(RECORDING)]
    if ranks > 1:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
        command = [sys.executable, *launcher, "--num_processes", str(ranks), str(RECORDING)]
    values = {
        "data.shards": shards, "data.image-size-px": 64, "data.threads": 1, "data.cache-dir": folder / "cache",
        "model.width": 4, "train.batch-size": 8, "train.epochs": 2, "train.log-every": 1, "tracking.overlays": 0,
        "out": folder / "run", **flags,
    }  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [*command, *words, "--train.no-test"], cwd=REPOSITORY, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env={**os.environ, **CALM, "RECORD_TO": str(folder), "STOP": stop},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    code, _, log = finish(process)
    return code, log


def launcher(checkout: Path, flags: list[str]) -> subprocess.Popen[str]:
    return start(checkout, "sweep", *flags)


def sweep_of(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path / "runs" / "lab")


def rows_of(folder: Path) -> list[dict[str, float]]:
    """Without clocks."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(folder)]


def contents(folder: Path) -> dict[str, str]:
    """Its files, but for the sign of life that holds no number."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "heartbeat.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
