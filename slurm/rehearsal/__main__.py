"""A private, real Slurm cluster on this machine, up in about a second: rehearse here before the real one.

    python -m slurm.rehearsal run -- srun --nodes 2 hostname
    python -m slurm.rehearsal start && eval "$(python -m slurm.rehearsal env)" && sinfo
    python -m slurm.rehearsal break node1
    python -m slurm.rehearsal heal node1
    python -m slurm.rehearsal stop

`run` keeps a cluster for as long as one command. `break` ends a node's slurmd and all its jobs, which Slurm starts
again.

Real slurmctld, slurmd and munge, make-believe GPUs, and with --accounting a real slurmdbd, so that sacct works;
partitions `gpu` (default) and `low` (preempted by `gpu`). `start` and `run` make it like another site's:

    --conf MaxArraySize=10 --conf JobRequeue=0        (any setting of slurm.conf; without a value, Slurm's default)
    --conf low.GraceTime=300 --conf gpu.MaxTime=60    (of a partition)
    --conf nodes.Features=a100                        (of every node)
    --partitions prod scavenge                        (other names; the first is the default and preempts the others)
    --accounting --conf AccountingStorageEnforce=limits,wckeys      (then limits, by sacctmgr)
    --slow squeue=5 --fail sbatch=first-2 --fail "sacct=always:Connection refused" --lose sbatch=every-3

`python -m slurm.rehearsal break slurmctld` and `disturb --fail squeue=always` do such things to a running cluster.

As root every node has its own pid, uts and mount namespace: its own hostname and /etc/hosts, and one kill takes the
node with its jobs, as a power cut does. Otherwise the nodes are named by address (127.0.0.11 and on) and share this
machine's processes. Jobs are not confined: no cgroups, so no memory limit is enforced.
"""

from __future__ import annotations

import getpass
import logging
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[2]}/shards/preamble.py")

import tyro

from shards.command import typed
from shards.command.flags import parse
from slurm.rehearsal import client
from slurm.rehearsal import cluster as rehearsal_cluster
from slurm.rehearsal.answers import FOLDER as ANSWERS_FOLDER
from slurm.rehearsal.answers import Answer, parse_answers, set_answers
from slurm.rehearsal.nodes import break_node, heal_node, is_running, require_running
from slurm.rehearsal.settings import DEFAULT_PARTITIONS, Site, parse_conf

logger = logging.getLogger(__name__)


def _default_root() -> Path:
    return Path(tempfile.gettempdir()) / f"rehearsal-of-{getpass.getuser()}"


@dataclass(frozen=True)
class Disturb:
    """Let Slurm's commands answer late or fail on a running cluster; without flags all answer as they should again.

    It holds for shells that have the variables of `env`, and for the jobs that they submit.
    """

    slow: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """COMMAND=SECONDS: it answers so much later."""
    fail: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """COMMAND=WHEN or COMMAND=WHEN:WORDS: it does nothing, says WORDS and exits 1 (without them, `Socket timed out on
    send/recv operation`). WHEN is always, first-N (the first N calls) or every-N (each Nth)."""
    lose: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """As --fail, but what was asked is done: only the answer is lost."""
    root: Path = field(default_factory=_default_root)
    """Folder of the cluster."""

    @property
    def answers(self) -> tuple[Answer, ...]:
        return parse_answers(self.slow, self.fail, self.lose)


@dataclass(frozen=True)
class Start(Disturb):
    """Start a cluster that runs until `stop`."""

    nodes: int = 2
    """How many nodes."""
    cpus: int = 4
    """CPUs of each node; more than the machine has are fine."""
    gpus: int = 2
    """Make-believe GPUs of each node."""
    accounting: bool = False
    """Make sacct work, by slurmdbd and a MariaDB of the cluster's own; takes two seconds more. You get the
    account `root`; `sacctmgr -i` adds accounts, wckeys and limits."""
    partitions: tuple[str, ...] = DEFAULT_PARTITIONS
    """Names of the partitions. The first is the default one; it preempts the others, which give jobs 15 s of grace."""
    conf: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE, a setting of slurm.conf in place of the rehearsal's own or of Slurm's default; PARTITION.KEY=VALUE is
    one of a partition and nodes.KEY=VALUE of every node. KEY= without a value lets Slurm's default hold. Slurm itself
    says what it does not know or take."""

    @property
    def site(self) -> Site:
        """What the flags ask for. Raises ValueError for those that make no sense."""
        conf = parse_conf(self.conf)
        return Site(self.nodes, self.cpus, self.gpus, self.accounting, self.partitions, conf, self.answers)

    @property
    def changes_something(self) -> bool:
        return bool(self.conf or self.answers) or self.partitions != DEFAULT_PARTITIONS


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
    """End a node as a power cut does: its slurmd and all processes of its jobs, with no time to save. Or slurmctld.

    What survives, as on no real node: files in /tmp and /dev/shm (the node shares them with this machine), and
    connections are closed properly instead of falling silent. Without root the processes are found below the node's
    slurmd, stopped, and then killed, not all in the same instant; those of other users cannot be ended at all.
    """

    node: tyro.conf.Positional[str]
    """The node, by the name that sinfo shows, or slurmctld: then nothing can be asked or submitted."""
    silent: bool = False
    """Slurm is not told, and finds out by itself (SlurmdTimeout is 10 s; it takes up to half a minute)."""
    root: Path = field(default_factory=_default_root)
    """Folder of the cluster."""


@dataclass(frozen=True)
class Heal:
    """Start a broken node or slurmctld again, and wait until Slurm uses it."""

    node: tyro.conf.Positional[str]
    """The node, by the name that sinfo shows, or slurmctld."""
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
    verb: Any = parse(Start | Stop | Env | Break | Heal | Disturb | Run, arguments, __doc__)
    if isinstance(verb, Run):
        return _run(verb, command)
    if command:
        raise ValueError(f"a command after -- goes with run only: run -- {shlex.join(command)}")
    if isinstance(verb, Start):
        cluster = rehearsal_cluster.start(verb.root, verb.site)
        logger.info('idle: %s; next: eval "$(python -m slurm.rehearsal env)"', " ".join(cluster.nodes))
    elif isinstance(verb, Stop):
        rehearsal_cluster.stop(verb.root)
    elif isinstance(verb, Break):
        break_node(verb.root, verb.node, tell=not verb.silent)
        logger.info(
            "%s is broken; next: %s", verb.node, typed("-m", "slurm.rehearsal", "heal", verb.node, "--root", verb.root)
        )
    elif isinstance(verb, Heal):
        heal_node(verb.root, verb.node)
        logger.info("%s is back", verb.node)
    elif isinstance(verb, Disturb):
        _disturb(verb)
    else:
        _print_env(verb.root)
    return 0


def _print_env(root: Path) -> None:
    require_running(root)
    for name, value in client.cluster_variables(root).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    # commands that are disturbed stand there; the rest of PATH is the shell's own
    sys.stdout.write(f'export PATH={shlex.quote(str(root.absolute() / ANSWERS_FOLDER))}:"$PATH"\n')


def _disturb(verb: Disturb) -> None:
    require_running(verb.root)
    set_answers(verb.root, verb.answers)
    disturbed = ", ".join(answer.command for answer in verb.answers)
    logger.info(
        "%s", f"disturbed: {disturbed}; a shell may need `hash -r`" if disturbed else "all commands answer again"
    )


def _run(options: Run, command: Sequence[str]) -> int:
    if not command:
        raise ValueError("nothing to run: python -m slurm.rehearsal run -- sinfo")
    if is_running(options.root):
        if options.changes_something:
            raise ValueError(
                f"a cluster runs in {options.root}, and is configured as it is: choose another --root, or "
                f"{typed('-m', 'slurm.rehearsal', 'stop', '--root', options.root)}"
            )
        return subprocess.run(command, env=client.client_env(options.root), check=False).returncode
    with rehearsal_cluster.rehearse(options.site) as cluster:
        return subprocess.run(command, env=cluster.env, check=False).returncode


if __name__ == "__main__":
    from shards.command import run_command

    raise SystemExit(run_command(main))
