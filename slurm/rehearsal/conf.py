"""What a rehearsal cluster is made of: its blueprint, and the configuration texts that follow from it (pure)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.rehearsal.settings import NODES, Site, merged, settings_of

# Linux limits a Unix socket's path to 107 bytes; munge's is the longest of ours.
SOCKET_PATH_LIMIT = 107
CLUSTER_NAME = "rehearsal"
MEM_MB = 64_000  # of each node


@dataclass(frozen=True)
class Blueprint:
    """One cluster: its folder, its size and settings, and what this machine allows."""

    root: Path
    site: Site
    namespaces: bool  # each node in its own pid, uts and mount namespace (root only)
    ports: tuple[int, ...]  # slurmctld, then one for each slurmd, then slurmdbd if there is accounting
    host: str
    user: str

    def __post_init__(self) -> None:
        if len(str(self.socket)) > SOCKET_PATH_LIMIT:
            raise ValueError(f"--root {self.root} is too long for a Unix socket; choose a shorter one")
        assert len(self.ports) == self.site.nodes + 1 + self.site.accounting, "one port for each daemon"

    @property
    def node_names(self) -> tuple[str, ...]:
        """node1.. when each node has its own /etc/hosts, else addresses, which resolve anywhere."""
        if self.namespaces:
            return tuple(f"node{number}" for number in range(1, self.site.nodes + 1))
        return self.addresses

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.{10 + number}" for number in range(1, self.site.nodes + 1))

    @property
    def conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def socket(self) -> Path:
        return self.root / "munge" / "socket"

    def gpu_files(self, node: str) -> list[Path]:
        return [self.root / "dev" / f"{node}-gpu{number}" for number in range(self.site.gpus)]


def free_ports(count: int, first: int = 10_000, last: int = 30_000) -> tuple[int, ...]:
    """TCP ports that nobody listens on, below the range from which the kernel takes outgoing ones.

    A port of that range (32768 on, by default) could be taken between this check and the daemon's bind.
    The starting point depends on a kernel-chosen port, so that two clusters started at once do not collide.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        offset = probe.getsockname()[1]
    ports: list[int] = []
    for step in range(last - first):
        port = first + (offset * 31 + step) % (last - first)
        with socket.socket() as candidate:
            try:
                candidate.bind(("", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return tuple(ports)
    raise OSError(f"no {count} free TCP ports between {first} and {last}")


def render_gres_conf(blueprint: Blueprint) -> str:
    """gres.conf of make-believe GPUs: File must be a character device, and a link to /dev/null is one."""
    lines = [
        f"NodeName={node} Name=gpu Type=fake File={path}"
        for node in blueprint.node_names
        for path in blueprint.gpu_files(node)
    ]
    return "".join(f"{line}\n" for line in lines)


def render_hosts(blueprint: Blueprint, machine_hosts: str) -> str:
    """/etc/hosts inside the nodes: this machine's, and every node's name."""
    lines = [f"{address} {name}" for address, name in zip(blueprint.addresses, blueprint.node_names, strict=True)]
    return machine_hosts.rstrip("\n") + "\n" + "\n".join(lines) + "\n"


def render_slurm_conf(blueprint: Blueprint) -> str:
    """slurm.conf: a quick scheduler, no cgroups, partitions gpu (default) and low, and what the site changes."""
    cluster = merged(
        [*_daemons(blueprint), *_accounting(blueprint), *_SCHEDULING], settings_of("", blueprint.site.conf)
    )
    return "\n".join([*cluster, *_nodes(blueprint), *_partitions(blueprint)]) + "\n"


def render_slurmdbd_conf(blueprint: Blueprint) -> str:
    """slurmdbd.conf: a database that is found by its socket, and lets its owner in without a password."""
    lines = (
        "AuthType=auth/munge",
        f"AuthInfo=socket={blueprint.socket}",
        f"DbdHost={blueprint.host}",
        "DbdAddr=127.0.0.1",
        f"DbdPort={blueprint.ports[-1]}",
        f"SlurmUser={blueprint.user}",
        f"PidFile={blueprint.root}/run/slurmdbd.own",
        f"LogFile={blueprint.root}/log/slurmdbd.log",
        "DebugLevel=info",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=root",
        "StorageLoc=slurm_acct",
        # slurmctld does not start where the two disagree on it
        f"TrackWCKey={'yes' if _tracks_wckeys(blueprint) else 'no'}",
    )
    return "".join(f"{line}\n" for line in lines)


def _daemons(blueprint: Blueprint) -> Sequence[str]:
    root = blueprint.root
    return (
        f"ClusterName={CLUSTER_NAME}",
        f"SlurmctldHost={blueprint.host}(127.0.0.1)",
        f"SlurmctldPort={blueprint.ports[0]}",
        f"SlurmUser={blueprint.user}",
        f"SlurmdUser={blueprint.user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # A requeued job waits for cred_expire: 120 s by default; 5 is the least (1 is silently read as 120).
        f"AuthInfo=socket={blueprint.socket},cred_expire=5",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldPidFile={root}/run/slurmctld.own",
        f"SlurmdPidFile={root}/run/slurmd.%n.own",
        f"SlurmctldLogFile={root}/log/slurmctld.log",
        f"SlurmdLogFile={root}/log/slurmd.%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "LogTimeFormat=iso8601_ms",
        f"PlugStackConfig={root}/etc/plugstack.conf",
        "MailProg=/bin/true",
        # The nodes are make-believe: no cgroups, no affinity, more CPUs than there are.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "SwitchType=switch/none",
        "SlurmdParameters=config_overrides",
    )


def _accounting(blueprint: Blueprint) -> Sequence[str]:
    """Without slurmdbd sacct fails, as on the clusters that run without accounting."""
    if not blueprint.site.accounting:
        return ("AccountingStorageType=accounting_storage/none",)
    return (
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={blueprint.ports[-1]}",
        # slurmdbd's clients take munge's socket from here, and not from AuthInfo
        f"AccountingStoragePass={blueprint.socket}",
        "AccountingStoreFlags=job_comment",
    )


_SCHEDULING = (
    "SelectType=select/cons_tres",
    "SelectTypeParameters=CR_Core",
    "SchedulerType=sched/backfill",
    "SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,bf_continue",
    "PriorityType=priority/basic",
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    # Without it a preempted job gets SIGTERM only, and not the signal that it asked for by --signal.
    "SlurmctldParameters=preempt_send_user_signal",
    "PreemptExemptTime=0",
    "JobRequeue=1",
    # Without it a request that no node can meet pends for ever instead of being refused.
    "EnforcePartLimits=ALL",
    "MaxArraySize=1001",
    "MaxJobCount=10000",
    "MinJobAge=600",
    # A node that was killed and comes back is used again without a word from the administrator.
    "ReturnToService=2",
    "KillWait=2",
    "CompleteWait=0",
    "InactiveLimit=0",
    "SlurmctldTimeout=30",
    "SlurmdTimeout=10",
    "BatchStartTimeout=20",
    # A preempted job that stays for its grace is asked again only after KillWait + MessageTimeout: 22 s, not GraceTime.
    "MessageTimeout=20",
    "GresTypes=gpu",
)

_PARTITION = ("Nodes=ALL", "MaxTime=INFINITE", "DefaultTime=10", "State=UP")
_FIRST_PARTITION = ("Default=YES", "PriorityTier=10", "PreemptMode=OFF")
_OTHER_PARTITION = ("PriorityTier=1", "PreemptMode=REQUEUE", "GraceTime=15")


def _partitions(blueprint: Blueprint) -> Sequence[str]:
    lines = []
    for name in blueprint.site.partitions:
        own = _FIRST_PARTITION if name == blueprint.site.partitions[0] else _OTHER_PARTITION
        settings = merged([*_PARTITION, *own], settings_of(name, blueprint.site.conf))
        lines.append(" ".join([f"PartitionName={name}", *settings]))
    return lines


def _tracks_wckeys(blueprint: Blueprint) -> bool:
    settings = {key.lower(): value.lower() for key, value in settings_of("", blueprint.site.conf).items()}
    enforced = settings.get("accountingstorageenforce", "").split(",")
    return settings.get("trackwckey") == "yes" or bool({"wckeys", "all"} & set(enforced))


def _nodes(blueprint: Blueprint) -> Sequence[str]:
    lines = []
    for name, address, port in zip(
        blueprint.node_names, blueprint.addresses, blueprint.ports[1 : blueprint.site.nodes + 1], strict=True
    ):
        hostname = name if blueprint.namespaces else blueprint.host
        settings = [f"NodeName={name}", f"NodeHostname={hostname}", f"NodeAddr={address}", f"Port={port}"]
        settings += [f"CPUs={blueprint.site.cpus}", f"RealMemory={MEM_MB}"]
        settings += [f"Gres=gpu:fake:{blueprint.site.gpus}"] if blueprint.site.gpus else []
        lines.append(" ".join(merged([*settings, "State=UNKNOWN"], settings_of(NODES, blueprint.site.conf))))
    return lines
