"""Check of a Slurm partition: what it allows and has, against what each job asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.checks.setup import Finding, Setup
from slurm import patience
from slurm.arrays import render_sbatch
from slurm.cluster import CLIENT_TIMEOUT_S, parse_facts, partitions
from slurm.patience import one_line
from slurm.request import Request
from slurm.resources import MB_PER_GB, Resources
from slurm.room import ask_sbatch, limit_in

NO_LIMIT = ("UNLIMITED", "INFINITE", "NONE", "N/A", "(null)")
# Slurm's words for nodes that take jobs, now or when others end; a mark follows: * does not answer, $ is maintained
USABLE_STATES = ("idle", "mixed", "allocated", "completing", "planned", "reserved")
UNUSABLE_MARKS = ("*", "$")


@dataclass(frozen=True)
class Node:
    """What one node has."""

    name: str
    cpus: int
    mem_mb: int
    gpus: int
    state: str

    def fits(self, resources: Resources) -> bool:
        return (
            self.cpus >= resources.processes_per_node * resources.cpus_per_task
            and self.mem_mb >= resources.mem_gb * MB_PER_GB
            and self.gpus >= resources.gpus_per_node
        )

    @property
    def usable(self) -> bool:
        return self.state.startswith(USABLE_STATES) and not self.state.endswith(UNUSABLE_MARKS)


@dataclass(frozen=True)
class Partition:
    """What a partition allows, and the nodes it has."""

    name: str
    limits: dict[str, str]
    nodes: list[Node]

    def fitting(self, resources: Resources) -> list[Node]:
        return [node for node in self.nodes if node.fits(resources)]

    def problems(self, resources: Resources) -> list[str]:
        """Why such a job would never run there."""
        return [*limit_problems(self.limits, resources), *node_problems(self, resources)]

    def __str__(self) -> str:
        kinds = Counter(f"{n.gpus} GPUs, {n.cpus} CPUs, {n.mem_mb / MB_PER_GB:.0f} GB" for n in self.nodes)
        nodes = " + ".join(f"{count} nodes of {kind}" for kind, count in kinds.items()) or "no nodes"
        return f"{self.name}: {nodes}, at most {self.limits.get('MaxTime', '?')}"


def check_partition(setup: Setup) -> Finding:
    """The partition is up, its limits and nodes allow what is asked, and sbatch would take the job."""
    what, asked = "partition", setup.command.resources
    if setup.command.cluster == "local":
        return Finding("ok", what, "the sweep is to run on this machine: no partition is asked")
    if missing := [name for name in ("sbatch", "scontrol", "sinfo") if shutil.which(name) is None]:
        return Finding("warn", what, f"no {missing[0]} on PATH", "go to a login node, or give --cluster local")
    known = partitions()
    names = asked.partition.split(",") if asked.partition else known[:1]  # the default comes first
    if not names or not set(names) <= set(known):
        there = f"there are {', '.join(known)}" if known else "Slurm does not answer, or has none"
        return Finding(
            "FAIL", what, f"no partition {asked.partition or 'by default'}: {there}", "give --partition NAME"
        )
    best = min((load_partition(name) for name in names), key=lambda partition: len(partition.problems(asked)))
    if problems := best.problems(asked):
        return Finding("FAIL", what, f"{'; '.join(problems)} ({best})", "ask for less, or another --partition")
    fitting = best.fitting(asked)
    if sum(node.usable for node in fitting) < asked.nodes:  # where sbatch --test-only refuses what sbatch would queue
        states = ", ".join(sorted({node.state for node in fitting}))
        return Finding("warn", what, f"{len(fitting)} nodes are large enough, but {states} ({best})", "sinfo --long")
    accepted, full, answer = try_sbatch(asked)
    if full:
        return Finding(
            "warn", what, f"sbatch takes no such job now: {answer} ({best})", "launch later: 75 says so again"
        )
    if not accepted:
        return Finding("FAIL", what, f"sbatch would refuse the job: {answer} ({best})", "ask as sbatch says")
    return Finding("ok", what, f"{best}; {len(fitting)} nodes are large enough; sbatch --test-only: {answer}")


def load_partition(name: str) -> Partition:
    """Raises OSError with Slurm's own words if it does not say."""
    limits = parse_facts(_call(["scontrol", "show", "partition", name, "--oneliner"]))
    listing = ["sinfo", "--noheader", "--Node", f"--partition={name}", "--format=%N|%c|%m|%G|%T"]
    return Partition(name, limits, parse_nodes(_call(listing)))


def parse_nodes(text: str) -> list[Node]:
    """Lines of `sinfo --Node --format=%N|%c|%m|%G|%T`; a `+` marks the least of several nodes."""
    nodes = {}
    for line in text.splitlines():
        if line.count("|") == 4:
            name, cpus, mem_mb, gres, state = (part.strip() for part in line.split("|"))
            nodes[name] = Node(name, int(cpus.rstrip("+")), int(mem_mb.rstrip("+")), count_gpus(gres), state)
    return list(nodes.values())


def count_gpus(gres: str) -> int:
    """`gpu:a100:4(S:0-1),gpu:h100:2,shard:8` -> 6; `gpu` alone is one."""
    entries = (entry for entry in re.sub(r"\([^)]*\)", "", gres).split(",") if re.match(r"gpu(:|$)", entry))
    lasts = (entry.rpartition(":")[2] for entry in entries)
    return sum(int(last) if last.isdecimal() else 1 for last in lasts)


def minutes(text: str) -> float:
    """Slurm's times: 30, 30:00, 1:30:00, 2-0, 2-12:00:00 or UNLIMITED -> minutes."""
    if text in NO_LIMIT:
        return float("inf")
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, mins, secs = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, mins, secs = parts
    else:
        hours, (mins, secs) = 0, [*parts, 0][:2]
    return int(days or 0) * 24 * 60 + hours * 60 + mins + secs / 60


def limit_problems(limits: Mapping[str, str], asked: Resources) -> Iterator[str]:
    """The limits of the partition that the job exceeds."""
    if limits.get("State", "UP") != "UP":
        yield f"it is {limits['State']}"
    longest = minutes(limits.get("MaxTime", "UNLIMITED"))
    if asked.timeout_min > longest:
        yield f"--timeout-min {asked.timeout_min} is more than its {longest:.0f} minutes"
    for name, wanted, flag in (
        ("MaxNodes", asked.nodes, "--nodes"),
        ("MaxCPUsPerNode", asked.processes_per_node * asked.cpus_per_task, "processes x --cpus-per-task"),
        ("MaxMemPerNode", asked.mem_gb * MB_PER_GB, "--mem-gb, in MB:"),
    ):
        allowed = limits.get(name, "UNLIMITED")
        if allowed.isdecimal() and wanted > int(allowed):
            yield f"{flag} {wanted:g} is more than its {name} of {allowed}"


def node_problems(partition: Partition, asked: Resources) -> Iterator[str]:
    """What the partition's nodes lack."""
    fitting = len(partition.fitting(asked))
    if fitting < asked.nodes:
        cpus = asked.processes_per_node * asked.cpus_per_task
        wanted = f"{asked.gpus_per_node} GPUs, {cpus} CPUs and {asked.mem_gb:g} GB"
        yield f"{fitting} of its {len(partition.nodes)} nodes have {wanted}, and --nodes is {asked.nodes}"


def try_sbatch(asked: Resources) -> tuple[bool, bool, str]:
    """Whether sbatch would take a trial's job, whether only not now, and what it says; nothing is submitted."""
    done = ask_sbatch(render_sbatch(1, Request(Path(tempfile.gettempdir()), asked, "petseg-doctor", 1)))
    answer = one_line(done.stderr)
    full = bool(done.returncode and (limit_in(done.stderr) or patience.TRANSIENT.search(done.stderr)))
    return done.returncode == 0, full, re.sub(r"^(sbatch: )?(Job \d+ )?", "", answer)


def _call(command: Sequence[str]) -> str:
    try:
        return patience.call(command, CLIENT_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise OSError(f"{command[0]}: {one_line(error.stderr)}") from None
