"""A private, real Slurm cluster on this machine, up in about a second: rehearse here before the real one.

    python -m slurm.rehearsal run -- srun --nodes 2 hostname     (a cluster for as long as one command)
    python -m slurm.rehearsal start && eval "$(python -m slurm.rehearsal env)" && sinfo
    python -m slurm.rehearsal break node1        (its slurmd and all its jobs die; Slurm starts the jobs again)
    python -m slurm.rehearsal heal node1
    python -m slurm.rehearsal stop

Real slurmctld, slurmd and munge, make-believe GPUs, and with --accounting a real slurmdbd, so that sacct works;
partitions `gpu` (default) and `low` (preempted by `gpu`). As root every node has its own pid, uts and mount
namespace: its own hostname and /etc/hosts, and one kill takes the node with its jobs, as a power cut does. Otherwise
the nodes are named by address (127.0.0.11 and on) and share this machine's processes. Jobs are not confined: no
cgroups, so no memory limit is enforced.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from slurm import rehearsal_client, rehearsal_cluster
from slurm.rehearsal_cluster import Cluster

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def rehearse(*, nodes: int = 2, cpus: int = 4, gpus: int = 2, accounting: bool = False) -> Iterator[Cluster]:
    """A cluster in a temporary folder for the length of the block; it dies with this process.

    `accounting` makes sacct work, by a slurmdbd and a database of the cluster's own.
    Raises ValueError if Slurm is not installed or its daemons do not come up.
    """
    # Not under a test's own temporary folder: munge and the jobs need a short path that others may enter.
    root = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        yield rehearsal_cluster.start(root, nodes=nodes, cpus=cpus, gpus=gpus, accounting=accounting, owner=os.getpid())
    finally:
        rehearsal_cluster.stop(root)
        shutil.rmtree(root, ignore_errors=True)


def _default_root() -> Path:
    return Path(tempfile.gettempdir()) / f"rehearsal-of-{getpass.getuser()}"


@dataclass(frozen=True)
class Start:
    """Start a cluster that runs until `stop`."""

    root: Path = field(default_factory=_default_root)
    """Folder of the cluster: configuration, state, logs."""
    nodes: int = 2
    """How many nodes."""
    cpus: int = 4
    """CPUs of each node; more than the machine has are fine."""
    gpus: int = 2
    """Make-believe GPUs of each node."""
    accounting: bool = False
    """Make sacct work, by slurmdbd and a MariaDB of the cluster's own; takes two seconds more."""


@dataclass(frozen=True)
class Stop:
    """Stop the cluster and end all that runs on it."""

    root: Path = field(default_factory=_default_root)
    """Folder of the cluster."""


@dataclass(frozen=True)
class Env:
    """Print the variables that point Slurm's commands at the cluster, for eval."""

    root: Path = field(default_factory=_default_root)
    """Folder of the cluster."""


@dataclass(frozen=True)
class Break:
    """End a node as a power cut does: its slurmd and all processes of its jobs, with no time to save.

    What survives, as on no real node: files in /tmp and /dev/shm (the node shares them with this machine), and
    connections are closed properly instead of falling silent. Without root the processes are found below the node's
    slurmd, stopped, and then killed, not all in the same instant; those of other users cannot be ended at all.
    """

    node: tyro.conf.Positional[str]
    """The node, by the name that sinfo shows."""
    silent: bool = False
    """Slurm is not told, and finds out by itself (SlurmdTimeout is 10 s; it takes up to half a minute)."""
    root: Path = field(default_factory=_default_root)
    """Folder of the cluster."""


@dataclass(frozen=True)
class Heal:
    """Start a broken node again, and wait until Slurm uses it."""

    node: tyro.conf.Positional[str]
    """The node, by the name that sinfo shows."""
    root: Path = field(default_factory=_default_root)
    """Folder of the cluster."""


@dataclass(frozen=True)
class Run(Start):
    """Run a command on the cluster, or on one that lives as long as the command: `run -- COMMAND ...`."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in arguments:
        split = arguments.index("--")
        arguments, command = arguments[:split], arguments[split + 1 :]
    verb = tyro.cli(Start | Stop | Env | Break | Heal | Run, args=arguments, prog="slurm.rehearsal")
    if isinstance(verb, Run):
        return _run(verb, command)
    if command:
        raise ValueError(f"a command after -- goes with run only: run -- {shlex.join(command)}")
    if isinstance(verb, Start):
        cluster = rehearsal_cluster.start(
            verb.root, nodes=verb.nodes, cpus=verb.cpus, gpus=verb.gpus, accounting=verb.accounting
        )
        logger.info('idle: %s; next: eval "$(python -m slurm.rehearsal env)"', " ".join(cluster.nodes))
    elif isinstance(verb, Stop):
        rehearsal_cluster.stop(verb.root)
    elif isinstance(verb, Break):
        rehearsal_cluster.break_node(verb.root, verb.node, tell=not verb.silent)
        logger.info("%s is broken; next: python -m slurm.rehearsal heal %s --root %s", verb.node, verb.node, verb.root)
    elif isinstance(verb, Heal):
        rehearsal_cluster.heal_node(verb.root, verb.node)
        logger.info("%s is back", verb.node)
    else:
        _print_env(verb.root)
    return 0


def _print_env(root: Path) -> None:
    if not rehearsal_cluster.is_running(root):
        raise ValueError(f"no cluster runs in {root}: python -m slurm.rehearsal start --root {root}")
    for name, value in rehearsal_client.cluster_variables(root).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


def _run(options: Run, command: Sequence[str]) -> int:
    if not command:
        raise ValueError("nothing to run: python -m slurm.rehearsal run -- sinfo")
    if rehearsal_cluster.is_running(options.root):
        return subprocess.run(command, env=rehearsal_cluster.client_env(options.root), check=False).returncode
    with rehearse(nodes=options.nodes, cpus=options.cpus, gpus=options.gpus, accounting=options.accounting) as cluster:
        return subprocess.run(command, env=cluster.env, check=False).returncode


if __name__ == "__main__":
    from shards.command import run_command

    raise SystemExit(run_command(main))
