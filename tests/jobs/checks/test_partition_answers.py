"""What the check of a partition says, by the answers that Slurm gives."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.checks import partition
from jobs.checks.partition import Node, Partition, check_partition, load_partition, parse_nodes, try_sbatch
from jobs.checks.setup import Command, Finding, Setup
from slurm.resources import MB_PER_GB, Resources

ASKED = Resources(partition="gpu", gpus_per_node=2, cpus_per_task=4, mem_gb=16, timeout_min=60)


def node(number: int = 1, gpus: int = 2, cpus: int = 8, state: str = "idle") -> Node:
    return Node(f"n{number}", cpus, 16 * MB_PER_GB, gpus, state)


class Slurm:
    """Partitions by their names, and what sbatch says."""

    def __init__(self) -> None:
        self.partitions = {"gpu": Partition("gpu", {"MaxTime": "2:00:00"}, [node(1), node(2)])}
        self.answer = (True, False, "to start at noon")
        self.tried: list[Resources] = []

    def try_sbatch(self, asked: Resources) -> tuple[bool, bool, str]:
        self.tried.append(asked)
        return self.answer


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    slurm = Slurm()
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(partition, "partitions", lambda: list(slurm.partitions))
    monkeypatch.setattr(partition, "load_partition", lambda name: slurm.partitions[name])
    monkeypatch.setattr(partition, "try_sbatch", slurm.try_sbatch)
    return slurm


def check(resources: Resources = ASKED, cluster: Any = "slurm") -> Finding:
    return check_partition(Setup(Command(resources, cluster=cluster), Path()))


BEST = "gpu: 2 nodes of 2 GPUs, 8 CPUs, 16 GB, at most 2:00:00"


def test_a_partition_that_takes_the_job(slurm: Slurm) -> None:
    assert check() == Finding(
        "ok", "partition", f"{BEST}; 2 nodes are large enough; sbatch --test-only: to start at noon"
    )
    assert slurm.tried == [ASKED]


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        ((False, False, "invalid account"), "FAIL", f"sbatch would refuse the job: invalid account ({BEST})"),
        ((False, True, "too many jobs"), "warn", f"sbatch takes no such job now: too many jobs ({BEST})"),
    ],
)
def test_a_refusal_for_now_is_told_from_one_for_good(
    slurm: Slurm, answer: tuple[bool, bool, str], status: str, detail: str
) -> None:
    slurm.answer = answer
    finding = check()
    assert (finding.status, finding.detail) == (status, detail)


@pytest.mark.parametrize("missing", ["sbatch", "scontrol", "sinfo"])
def test_where_slurm_is_not_installed(slurm: Slurm, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == missing else f"/bin/{name}")
    finding = check()
    assert (finding.status, finding.detail) == ("warn", f"no {missing} on PATH")
    finding = check(cluster="local")
    assert (finding.status, finding.detail) == ("ok", "the sweep is to run on this machine: no partition is asked")
    assert slurm.tried == []


@pytest.mark.parametrize(
    ("asked", "known", "detail"),
    [
        ("none", ["gpu", "low"], "no partition none: there are gpu, low"),
        ("gpu,none", ["gpu"], "no partition gpu,none: there are gpu"),
        ("gpu", [], "no partition gpu: Slurm does not answer, or has none"),
        (None, [], "no partition by default: Slurm does not answer, or has none"),
    ],
)
def test_a_partition_that_is_not_there(slurm: Slurm, asked: str | None, known: list[str], detail: str) -> None:
    slurm.partitions = dict.fromkeys(known, slurm.partitions["gpu"])
    finding = check(Resources(partition=asked))
    assert (finding.status, finding.detail, finding.advice) == ("FAIL", detail, "give --partition NAME")


def test_the_default_partition_is_the_first_and_of_several_the_best_counts(slurm: Slurm) -> None:
    slurm.partitions["low"] = Partition("low", {"State": "DOWN", "MaxTime": "30"}, [node()])
    assert check(replace(ASKED, partition=None)).detail.startswith("gpu: ")
    assert check(replace(ASKED, partition="low,gpu")).detail.startswith("gpu: ")
    slurm.partitions = {"low": slurm.partitions["low"], "gpu": slurm.partitions["gpu"]}
    assert "(low: " in check(replace(ASKED, partition=None)).detail  # no other one is asked
    finding = check(replace(ASKED, partition="low", nodes=2))
    assert finding.status == "FAIL"
    assert finding.detail == (
        "it is DOWN; --timeout-min 60 is more than its 30 minutes; 1 of its 1 nodes have 2 GPUs, 8 CPUs and 16 GB, and "
        "--nodes is 2 (low: 1 nodes of 2 GPUs, 8 CPUs, 16 GB, at most 30)"
    )


def test_nodes_that_are_large_enough_and_do_not_work(slurm: Slurm) -> None:
    """As many as the job has must be able to take it; what is too small does not count."""
    states = ("idle", "drained", "down*")
    nodes = [*(node(number, state=state) for number, state in enumerate(states)), node(3, gpus=0)]
    slurm.partitions["gpu"] = Partition("gpu", {}, nodes)
    assert check().status == "ok"
    finding = check(replace(ASKED, nodes=2))
    kinds = "3 nodes of 2 GPUs, 8 CPUs, 16 GB + 1 nodes of 0 GPUs, 8 CPUs, 16 GB"
    told = f"3 nodes are large enough, but down*, drained, idle (gpu: {kinds}, at most ?)"
    assert (finding.status, finding.detail) == ("warn", told)
    assert str(Partition("empty", {}, [])) == "empty: no nodes, at most ?"


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        ("idle", True), ("mixed", True), ("allocated", True), ("completing", True), ("planned", True),
        ("reserved", True), ("idle~", True), ("idle*", False), ("idle$", False), ("drained", False), ("down", False),
        ("fail", False), ("maint", False),
    ],
)  # fmt: skip
def test_states_of_nodes_that_take_jobs(state: str, usable: bool) -> None:
    assert node(state=state).usable is usable


def test_what_slurm_is_asked_of_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        ("scontrol", "show", "partition", "gpu", "--oneliner"): "PartitionName=gpu MaxTime=30 State=UP\n",
        ("sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%N|%c|%m|%G|%T"): (
            "n1|8|16000|gpu:2|idle\nsinfo: a warning\n n2 | 4 | 8000 | (null) | down* \n"
        ),
    }
    monkeypatch.setattr(partition.patience, "call", lambda command, limit_s: answers[tuple(command)])
    found = load_partition("gpu")
    assert found.limits == {"PartitionName": "gpu", "MaxTime": "30", "State": "UP"}
    assert found.nodes == [Node("n1", 8, 16000, 2, "idle"), Node("n2", 4, 8000, 0, "down*")]
    assert parse_nodes("") == []


def test_a_slurm_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: Sequence[str], limit_s: float) -> str:
        raise subprocess.CalledProcessError(1, command, stderr="error: Socket timed out\n")

    monkeypatch.setattr(partition.patience, "call", fail)
    with pytest.raises(OSError, match=r"^scontrol: error: Socket timed out$"):
        load_partition("gpu")


@pytest.mark.parametrize(
    ("code", "stderr", "accepted", "full", "answer"),
    [
        (0, "sbatch: Job 12 to start at noon\n", True, False, "to start at noon"),
        (1, "sbatch: error: invalid account\n", False, False, "invalid account"),
        (1, "failure: QOSMaxSubmitJobPerUserLimit\n", False, True, "failure: QOSMaxSubmitJobPerUserLimit"),
        (1, "Socket timed out on send/recv operation\n", False, True, "Socket timed out on send/recv operation"),
        (0, "sbatch: Job 12 after Socket timed out\n", True, False, "after Socket timed out"),
    ],
)
def test_what_sbatch_says_to_the_script_of_a_trial(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, accepted: bool, full: bool, answer: str
) -> None:
    scripts: list[str] = []

    def ask(script: str) -> SimpleNamespace:
        scripts.append(script)
        return SimpleNamespace(returncode=code, stderr=stderr)

    monkeypatch.setattr(partition, "ask_sbatch", ask)
    assert try_sbatch(ASKED) == (accepted, full, answer)
    (script,) = scripts
    for flag in ("--partition=gpu", "--time=60", "--gpus-per-node=2", "--cpus-per-task=4"):
        assert f"#SBATCH {flag}\n" in script
