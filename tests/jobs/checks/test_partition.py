"""The doctor on a real Slurm, on one that is missing, and on all-reduces over its nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.checks import allreduce, partition
from jobs.checks.setup import Finding
from slurm.rehearsal.answers import Answer
from slurm.rehearsal.cluster import Cluster
from slurm.resources import Resources

Doctor = Callable[..., dict[str, Finding]]


def test_without_slurm(ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = ask("partition")["partition"]
    assert finding.status == "warn"
    assert "no sbatch on PATH" in finding.detail
    assert ask("all-reduce", "--all-reduce")["all-reduce"].status == "warn"  # one process


SMALL_JOB = ("--cpus-per-task", "1", "--mem-gb", "2")


@pytest.mark.slurm
def test_what_a_partition_allows(ask: Doctor, on_cluster: Cluster) -> None:
    finding = ask("partition", *SMALL_JOB, "--partition", "gpu", "--gpus", "2", "--nodes", "2")["partition"]
    assert finding.status == "ok", finding
    assert "2 nodes of 2 GPUs, 4 CPUs" in finding.detail
    assert "to start at" in finding.detail
    assert ask("partition", *SMALL_JOB)["partition"].detail.startswith("gpu: ")
    for flags, detail in (
        (("--partition", "gpus"), "no partition gpus: there are gpu, low"),
        (("--gpus", "3"), "0 of its 2 nodes have 3 GPUs, 3 CPUs and 2 GB, and --nodes is 1"),
        (("--nodes", "3"), "2 of its 2 nodes have"),
        (("--cpus-per-task", "5"), "0 of its 2 nodes have 0 GPUs, 5 CPUs"),
        (("--mem-gb", "100000"), "and 100000 GB"),
        (("--constraint", "a100"), "sbatch would refuse the job"),
    ):
        finding = ask("partition", *SMALL_JOB, *flags)["partition"]
        assert finding.status == "FAIL"
        assert detail in finding.detail


@pytest.mark.slurm
def test_a_cluster_that_takes_no_more_now_and_answers_now_and_then(ask: Doctor, on_cluster: Cluster) -> None:
    words = "allocation failure: Resource temporarily unavailable"
    on_cluster.disturb(Answer("sbatch", fails="always", words=words), Answer("scontrol", fails="first-1"))
    try:
        finding = ask("partition", *SMALL_JOB)["partition"]
    finally:
        on_cluster.disturb()
    assert finding.status == "warn"
    assert "sbatch takes no such job now: allocation failure: Resource temporarily unavailable" in finding.detail


@pytest.mark.slurm
def test_a_partition_with_limits_and_nodes_that_are_down(ask: Doctor, on_cluster: Cluster) -> None:
    def update(*settings: str, check: bool = True) -> None:
        subprocess.run(["scontrol", "update", *settings], check=check, timeout=30)

    try:
        update("PartitionName=low", "MaxTime=30", "MaxNodes=1")
        flags = (*SMALL_JOB, "--partition", "low", "--timeout-min", "60", "--nodes", "2")
        finding = ask("partition", *flags)["partition"]
        assert finding.status == "FAIL"
        assert "--timeout-min 60 is more than its 30 minutes; --nodes 2 is more than its MaxNodes" in finding.detail
        detail = ask("partition", *flags, "--partition", "low,gpu")["partition"].detail
        assert detail.startswith("sbatch would refuse")  # EnforcePartLimits=ALL: each of them must allow it
        assert "(gpu: 2 nodes" in detail
        update("PartitionName=low", "State=DOWN")
        assert "it is DOWN" in ask("partition", *flags)["partition"].detail
        update("NodeName=ALL", "State=DRAIN", "Reason=test")
        finding = ask("partition", *SMALL_JOB, "--partition", "gpu")["partition"]
        assert finding.status == "warn", finding
        assert "2 nodes are large enough, but drained" in finding.detail
    finally:
        update("PartitionName=low", "MaxTime=INFINITE", "MaxNodes=UNLIMITED", "State=UP")
        update("NodeName=ALL", "State=RESUME", check=False)  # which nodes refuse that are not drained


def test_slurms_words() -> None:
    times = {"30": 30, "90:30": 90.5, "1:30:00": 90, "2-0": 2880, "2-12": 3600, "1-01:01:00": 1501}
    assert {text: partition.minutes(text) for text in times} == times
    assert partition.minutes("UNLIMITED") == float("inf")
    gres = {"gpu:a100:4(S:0-1),gpu:h100:2,shard:8": 6, "gpu:8": 8, "gpu": 1, "(null)": 0, "gpu:fake:2": 2}
    assert {text: partition.count_gpus(text) for text in gres} == gres
    nodes = partition.parse_nodes("n1|64+|512000+|gpu:4|idle*\nn2|8|16000|(null)|mixed-\nn2|8|16000|(null)|mixed-")
    assert [(node.cpus, node.mem_mb, node.gpus, node.usable) for node in nodes] == [
        (64, 512000, 4, False), (8, 16000, 0, True),
    ]  # fmt: skip


@pytest.mark.slow
def test_an_all_reduce_that_cannot_meet(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    finding = ask("all-reduce", "--cluster", "local", "--tasks-per-node", "2")["all-reduce"]
    assert finding.status == "FAIL"
    assert "2 processes did not come to an end" in finding.detail
    log = Path(finding.advice.removeprefix("its log: "))
    assert "none0" in log.read_text()


def test_what_an_all_reduce_says() -> None:
    row = {"world_size": 2, "hosts": ["a", "b"], "device": "cpu", "wrong": 0, "ms": 2.0, "gb_per_s": 32.0}
    asked = Resources(nodes=2, gpus_per_node=0)
    for changes, resources, status, detail in (
        ({}, asked, "ok", "2 processes (cpu) on a, b: 64 MB in 2.0 ms, 32.00 GB/s; all sums right"),
        ({"wrong": 5}, asked, "FAIL", "but 5 sums are wrong"),
        ({"world_size": 1}, asked, "FAIL", "but 2 processes were asked for"),
        ({}, Resources(nodes=2), "FAIL", "but GPUs were asked for"),
    ):
        finding = allreduce.finding_of(row | changes, resources)
        assert (finding.status, detail in finding.detail) == (status, True)


@pytest.mark.slurm
@pytest.mark.slow
def test_an_all_reduce_over_two_nodes(ask: Doctor, on_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    finding = ask("all-reduce", *SMALL_JOB, "--nodes", "2", "--partition", "gpu")["all-reduce"]
    assert finding.status == "ok", finding
    assert "2 processes (cpu) on " in finding.detail


@pytest.mark.slurm
def test_an_all_reduce_that_waits_for_too_long_is_cancelled(ask: Doctor, on_cluster: Cluster) -> None:
    blocker = ["sbatch", "--output=/dev/null", "--wrap=sleep 60"]
    job_id = subprocess.run(blocker, check=True, timeout=30, capture_output=True, text=True).stdout.split()[-1]
    flags = (*SMALL_JOB, "--tasks-per-node", "2", "--dependency", f"afterany:{job_id}", "--wait-min", "0.02")
    try:
        finding = ask("all-reduce", *flags)["all-reduce"]
    finally:
        subprocess.run(["scancel", job_id], check=True, timeout=30)
    assert finding.status == "FAIL"
    assert "was PENDING (Dependency)" in finding.detail


@pytest.mark.parametrize(
    ("resources", "fits"),
    [
        (Resources(gpus_per_node=2, cpus_per_task=4, mem_gb=16), True),  # all that the node has
        (Resources(gpus_per_node=2, cpus_per_task=5, mem_gb=16), False),  # each of two processes takes its own CPUs
        (Resources(gpus_per_node=3, cpus_per_task=2, mem_gb=16), False),
        (Resources(gpus_per_node=2, cpus_per_task=4, mem_gb=17), False),
        (Resources(gpus_per_node=0, tasks_per_node=4, cpus_per_task=2, mem_gb=1), True),
        (Resources(gpus_per_node=0, tasks_per_node=4, cpus_per_task=3, mem_gb=1), False),
    ],
)
def test_a_node_fits_if_it_has_all_that_the_processes_take(resources: Resources, fits: bool) -> None:
    node = partition.Node("n1", 8, 16 * partition.MB_PER_GB, 2, "idle")
    assert node.fits(resources) is fits


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, []),
        ({"State": "UP", "MaxTime": "1:00:00", "MaxNodes": "2", "MaxCPUsPerNode": "8", "MaxMemPerNode": "16384"}, []),
        ({"State": "DRAIN"}, ["it is DRAIN"]),
        ({"MaxTime": "59:00"}, ["--timeout-min 60 is more than its 59 minutes"]),
        ({"MaxNodes": "1"}, ["--nodes 2 is more than its MaxNodes of 1"]),
        ({"MaxCPUsPerNode": "7"}, ["processes x --cpus-per-task 8 is more than its MaxCPUsPerNode of 7"]),
        ({"MaxMemPerNode": "16383"}, ["--mem-gb, in MB: 16384 is more than its MaxMemPerNode of 16383"]),
        ({"MaxMemPerNode": "UNLIMITED", "MaxNodes": "UNLIMITED"}, []),
    ],
)
def test_a_job_may_take_all_that_a_partition_allows_and_no_more(limits: dict[str, str], words: list[str]) -> None:
    asked = Resources(nodes=2, gpus_per_node=2, cpus_per_task=4, mem_gb=16, timeout_min=60)
    assert list(partition.limit_problems(limits, asked)) == words
