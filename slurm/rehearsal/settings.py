"""Describes a rehearsal cluster: its size, and settings of slurm.conf, checked and merged (pure)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slurm.rehearsal.answers import Answer

DEFAULT_PARTITIONS = ("gpu", "low")
NODES = "nodes"  # nodes.KEY=VALUE is a setting of every node; no partition can bear that name
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

# Where the daemons find each other and their files. Changed, the rehearsal would not find its own cluster.
OWN_KEYS = frozenset(
    {
        "accountingstoragehost", "accountingstoragepass", "accountingstorageport", "accountingstoragetype", "authinfo",
        "authtype", "clustername", "credtype", "include", "nodename", "partitionname", "plugstackconfig",
        "slurmctldhost", "slurmctldlogfile", "slurmctldpidfile", "slurmctldport", "slurmdlogfile", "slurmdpidfile",
        "slurmdport", "slurmdspooldir", "slurmduser", "slurmuser", "statesavelocation",
    }
)  # fmt: skip
OWN_NODE_KEYS = frozenset({"cpus", "gres", "nodeaddr", "nodehostname", "nodename", "port", "state"})


@dataclass(frozen=True)
class Site:
    """The size and the settings of a cluster. Raises ValueError for impossible ones."""

    nodes: int = 2
    cpus: int = 4  # of each node
    gpus: int = 2  # of each node, make-believe
    accounting: bool = False  # make sacct work, by a slurmdbd and a database of the cluster's own
    partitions: tuple[str, ...] = DEFAULT_PARTITIONS  # the first is the default one and preempts the others
    conf: Mapping[str, str] = field(default_factory=dict)  # what differs from the default slurm.conf, see `parse_conf`
    answers: tuple[Answer, ...] = ()  # commands that answer late or fail

    def __post_init__(self) -> None:
        check_conf(self.conf, self.partitions)
        if self.nodes < 1 or self.nodes > 200:
            raise ValueError(f"nodes={self.nodes}: a rehearsal has 1 to 200 nodes")
        if self.cpus < 1 or self.gpus < 0:
            raise ValueError(f"cpus={self.cpus}, gpus={self.gpus}: too few")


def parse_conf(words: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE`, `PARTITION.KEY=VALUE` or `nodes.KEY=VALUE` -> what stands before the first `=` -> VALUE.

    Raises ValueError for anything else, and for a key that is given twice.
    """
    conf: dict[str, str] = {}
    for word in words:
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not all(NAME.fullmatch(part) for part in key.split(".")) or key.count(".") > 1:
            raise ValueError(
                f"--conf {word}: must be KEY=VALUE, PARTITION.KEY=VALUE or {NODES}.KEY=VALUE, such as MaxArraySize=10"
            )
        if "\n" in value or "#" in value:
            raise ValueError(f"--conf {word!r}: a setting is one line, without a comment")
        if key.lower() in (known.lower() for known in conf):
            raise ValueError(f"--conf {key} is given twice")
        conf[key] = value
    return conf


def check_conf(conf: Mapping[str, str], partitions: Sequence[str]) -> None:
    """Raises ValueError for settings that the rehearsal makes itself, and for unknown partitions.

    Slurm itself checks names and values of settings.
    """
    for name in partitions:
        if not NAME.fullmatch(name) or name.lower() in (NODES, "default", "all"):
            raise ValueError(f"--partitions {name}: must be a word of letters, digits, _ and -, other than {NODES}")
    if not partitions or len(set(partitions)) != len(partitions):
        raise ValueError(f"--partitions {' '.join(partitions)}: name each partition once, the default one first")
    for key in conf:
        section, dot, name = key.rpartition(".")
        if dot and section not in (NODES, *partitions):
            raise ValueError(f"--conf {key}: no partition {section}: choose one of {', '.join(partitions)}, or {NODES}")
        own = OWN_NODE_KEYS if section == NODES else OWN_KEYS
        if name.lower() in own:
            flags = "--nodes, --cpus, --gpus, --accounting and --partitions"
            raise ValueError(f"--conf {key}: the rehearsal sets {name} itself; what can be chosen has flags: {flags}")


def settings_of(section: str, conf: Mapping[str, str]) -> dict[str, str]:
    """The settings of a partition, of the nodes, or, for "", of the cluster."""
    parts = ((key.rpartition("."), value) for key, value in conf.items())
    return {name: value for (where, _, name), value in parts if where == section}


def merged(defaults: Sequence[str], changes: Mapping[str, str]) -> list[str]:
    """Settings `KEY=VALUE` with the changes made; keys are compared as Slurm does, in any case.

    A change to "" leaves the setting out, so that Slurm's own default holds.
    """
    changed = {key.lower() for key in changes}
    kept = [line for line in defaults if line.partition("=")[0].lower() not in changed]
    return kept + [f"{key}={value}" for key, value in changes.items() if value]
