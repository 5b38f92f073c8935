"""The doctor looks at a node of a real Slurm, some of whose folders are its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.checks import nodes
from jobs.checks.setup import Finding
from slurm.rehearsal.answers import Answer
from slurm.rehearsal.cluster import Cluster

Doctor = Callable[..., dict[str, Finding]]
ON_GPU = ("--partition", "gpu")


@contextmanager
def a_folder_of_the_nodes_own(folder: Path, *options: str) -> Iterator[None]:
    """Within the block each node has an empty file system of its own in place of the folder."""
    on_each = ["srun", "--partition=gpu", "--nodes=2", "--ntasks-per-node=1", "--chdir=/"]
    subprocess.run([*on_each, "mount", *options, "-t", "tmpfs", "tmpfs", str(folder)], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run([*on_each, "umount", str(folder)], check=True, timeout=60)


@pytest.fixture
def on_nodes(on_cluster: Cluster) -> Cluster:
    """Nodes with mount namespaces of their own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount folders on the nodes")
    return on_cluster


@pytest.mark.slurm
def test_a_node_that_sees_everything(ask: Doctor, on_cluster: Cluster, tmp_path: Path) -> None:
    finding = ask("nodes", *ON_GPU, "--gpus", "2")["nodes"]
    assert finding.status == "ok", finding
    assert "can write to the sweep's folder, and sees this Python" in finding.detail
    assert "the shards, " in finding.detail
    assert not list(tmp_path.glob("**/.doctor-*"))
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True, timeout=30)
    assert "petseg-doctor" not in queue.stdout


@pytest.mark.slow
@pytest.mark.slurm
def test_a_folder_of_sweeps_that_the_nodes_do_not_see(ask: Doctor, on_nodes: Cluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with a_folder_of_the_nodes_own(runs):
        finding = ask("nodes", *ON_GPU)["nodes"]
    assert finding.status == "FAIL"
    assert finding.detail.endswith(f"does not see the folder of the sweep, {runs}")
    assert "share" in finding.advice


@pytest.mark.slow
@pytest.mark.slurm
def test_shards_that_the_nodes_do_not_see(ask: Doctor, on_nodes: Cluster, copied: Path) -> None:
    with a_folder_of_the_nodes_own(copied):
        finding = ask("nodes", *ON_GPU, shards=copied)["nodes"]
    assert finding.status == "FAIL"
    assert finding.detail.endswith(f"does not see the shards, {copied}")


@pytest.mark.slurm
def test_a_folder_of_sweeps_that_the_nodes_cannot_write_to(ask: Doctor, on_nodes: Cluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    on_each = ["srun", "--partition=gpu", "--nodes=2", "--ntasks-per-node=1", "--chdir=/"]
    subprocess.run([*on_each, "mount", "--bind", "-o", "ro", str(runs), str(runs)], check=True, timeout=60)
    try:
        finding = ask("nodes", *ON_GPU)["nodes"]
    finally:
        subprocess.run([*on_each, "umount", str(runs)], check=True, timeout=60)
    assert finding.status == "FAIL"
    assert f"cannot write to {runs}" in finding.detail


@pytest.mark.slurm
def test_what_cannot_be_found_out_is_not_known(
    ask: Doctor, on_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = ask("nodes", "--partition", "none")["nodes"]
    assert (finding.status, "not known what the nodes see: sbatch: " in finding.detail) == ("warn", True)
    on_cluster.disturb(Answer("scontrol", fails="always", words="Invalid user id"))
    try:
        finding = ask("nodes", *ON_GPU)["nodes"]
    finally:
        on_cluster.disturb()
    assert (finding.status, "not known what the nodes see: scontrol: " in finding.detail) == ("warn", True)
    blocker = ["sbatch", "--output=/dev/null", "--exclusive", "--nodes=2", "--partition=gpu", "--wrap=sleep 60"]
    job_id = subprocess.run(blocker, check=True, timeout=30, capture_output=True, text=True).stdout.split()[-1]
    try:
        finding = ask("nodes", *ON_GPU, "--wait-min", "0.03")["nodes"]
    finally:
        subprocess.run(["scancel", job_id], check=True, timeout=30)
    assert finding.status == "warn"
    assert "was PENDING" in finding.detail
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True, timeout=30)
    assert "petseg-doctor" not in queue.stdout


def test_without_a_partition_or_slurm_nothing_is_submitted(
    ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = tmp_path / "called"
    for name in ("sbatch", "scontrol", "scancel"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {called}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "no partition is named" in ask("nodes")["nodes"].detail
    assert ask("nodes", *ON_GPU, "--cluster", "local")["nodes"].status == "ok"
    assert not called.exists()
    monkeypatch.setenv("PATH", str(shutil.which("env")).removesuffix("/env") + "/none")
    assert "no sbatch on PATH" in ask("nodes", *ON_GPU)["nodes"].detail


def test_a_job_that_ends_in_another_way_tells_nothing(tmp_path: Path) -> None:
    for state, code in (("CANCELLED", 0), ("NODE_FAIL", 1), ("FAILED", 127), ("TIMEOUT", 0)):
        finding = nodes.finding_of(nodes.Ended(state, code, "n1"), ["the folder"], tmp_path, tmp_path)
        assert (finding.status, state in finding.detail) == ("warn", True)


@pytest.mark.parametrize(
    ("state", "exit_code", "status", "detail"),
    [
        ("FAILED", 10, "FAIL", "n1 does not see this Python"),
        ("FAILED", 11, "FAIL", "n1 does not see the shards"),
        ("FAILED", 12, "warn", "the job on n1 ended FAILED, exit code 12"),
        ("FAILED", 9, "FAIL", "n1 cannot write to "),
        ("TIMEOUT", 10, "warn", "the job on n1 ended TIMEOUT, exit code 10"),
        ("COMPLETED", 0, "ok", "sees the shards"),
    ],
)
def test_what_the_exit_code_of_the_job_says(
    tmp_path: Path, state: str, exit_code: int, status: str, detail: str
) -> None:
    (tmp_path / nodes.WRITTEN).touch()
    finding = nodes.finding_of(nodes.Ended(state, exit_code, "n1"), ["this Python", "the shards"], tmp_path, tmp_path)
    assert (finding.status, detail in finding.detail) == (status, True), finding
