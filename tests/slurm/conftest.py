"""What the tests of the rehearsal cluster share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.rehearsal import daemons
from slurm.rehearsal.cluster import Cluster


@pytest.fixture(scope="session")
def processes_of() -> Callable[[Path], list[int]]:
    """Every process that was started with the cluster's folder in its arguments or its environment."""

    def find(root: Path) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(root) in text and daemons.start_ticks(int(folder.name)):
                found.append(int(folder.name))
        return found

    return find


@pytest.fixture(scope="session")
def call() -> Callable[..., str]:
    """What a Slurm command answers on a cluster."""

    def run(cluster: Cluster, *command: str) -> str:
        done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    return run
