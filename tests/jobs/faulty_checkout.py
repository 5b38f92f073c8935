"""A copy of the code with a fault in it: what jobs do when something goes wrong in their midst, without a mock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 300.0  # importing torch takes a minute where many tests run at once


def copy_with_fault(folder: Path, files: str, before: str, fault: str) -> Path:
    """A checkout in `folder`, with lines added in front of the first line that starts with `before` in those files."""
    for package in ("jobs", "petseg", "shards", "slurm"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(folder.glob(files)):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.startswith(before):
                path.write_text("\n".join([*lines[:number], fault.rstrip("\n"), *lines[number:]]) + "\n")
                return folder
    raise AssertionError(f"no line in {files} starts with {before!r}")


def start(checkout: Path, script: str, *words: str) -> subprocess.Popen[str]:
    """`python jobs/SCRIPT.py WORDS` of that checkout, whatever is installed."""
    env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [sys.executable, str(checkout / "jobs" / f"{script}.py"), *words],
        cwd=checkout, env=os.environ | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; what takes five minutes is ended, a launcher with its jobs."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        _, err = process.communicate(timeout=60)
        raise AssertionError(err) from None
    finally:
        process.kill()
    return process.returncode, out, err


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within five minutes"
        time.sleep(0.05)
