"""Slurm's own commands, pointed at a rehearsal cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurm.rehearsal.answers import path_with, path_without

TIMEOUT_S = 10.0


def cluster_variables(root: Path) -> dict[str, str]:
    # The nodes' addresses are all on the loopback interface, which gloo does not choose on its own.
    return {"SLURM_CONF": str(root.absolute() / "etc" / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo"}


def client_env(root: Path) -> dict[str, str]:
    """This process's environment, pointed at the cluster in `root`, with its commands as they are to answer."""
    path = path_with(root, os.environ.get("PATH", os.defpath))
    return _outside_env() | cluster_variables(root) | {"PATH": path}


def daemon_env(root: Path) -> dict[str, str]:
    """The environment of the cluster's daemons."""
    path = path_without(root, daemon_path())
    return _outside_env() | {"PATH": path, "SLURM_CONF": cluster_variables(root)["SLURM_CONF"]}


def daemon_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def ask(root: Path, command: Sequence[str]) -> str:
    """The answer of a Slurm client command, empty when slurmctld does not answer; never disturbed."""
    try:
        done = subprocess.run(
            list(command), env=daemon_env(root), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def order(root: Path, command: Sequence[str]) -> None:
    """Give Slurm an order. Raises ValueError with its own words if it refuses or does not answer."""
    try:
        done = subprocess.run(
            list(command), env=daemon_env(root), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} got no answer in {TIMEOUT_S:.0f} s: see {root}/log/slurmctld.log") from None
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")


def _outside_env() -> dict[str, str]:
    """This process's environment without what a surrounding job left in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
