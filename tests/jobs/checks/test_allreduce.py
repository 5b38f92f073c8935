"""The check of the network between processes: what each of them does, and what is said of what they wrote down."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from jobs.checks import allreduce
from jobs.checks.allreduce import MEGABYTES, RESULT_NAME, all_reduce, await_job, check_all_reduce
from jobs.checks.setup import Command, Setup
from slurm.cluster import JobState
from slurm.request import Request
from slurm.resources import Resources

ROW = {"world_size": 2, "hosts": ["a", "b"], "device": "cpu", "wrong": 0, "ms": 2.0, "gb_per_s": 32.0}
WAITS, RUNS = JobState("PENDING", "Priority", "", "squeue"), JobState("RUNNING", "", "n1", "squeue")
OVER = JobState("FAILED", "NonZeroExitCode", "n1", "sacct")


@pytest.mark.parametrize(("rank", "total", "wrong"), [(0, 6.0, 0), (0, 5.0, 5), (1, 6.0, 0)])
def test_each_process_adds_its_rank_and_the_first_one_writes_what_came_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int, total: float, wrong: int
) -> None:
    """Three processes on two nodes: 1 + 2 + 3 in each number; the quickest round counts."""
    order: list[str] = []
    environment = SimpleNamespace(global_rank=rank, local_rank=0, num_tasks=3, hostname="node1")
    clock = iter([0.0, 0.5, 1.0, 1.25, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])
    summed: list[list[float]] = []

    def add_up(tensor: torch.Tensor) -> None:
        summed.append(tensor[:1].tolist())
        tensor.fill_(6.0)
        if total != 6.0 and len(summed) == 1:
            tensor[:2] = total

    def gather(ranks: list[Any], own: tuple[str, int]) -> None:
        order.append("gather")
        ranks[:] = [own, ("node2", 3 if wrong else 0), ("node1", 0)]

    def begin(backend: str, **how: Any) -> None:
        order.append(f"begin {backend} {how['timeout'].total_seconds():.0f} {how['device_id']}")

    monkeypatch.setattr(allreduce, "MEGABYTES", 2)
    monkeypatch.setattr(allreduce.submitit, "JobEnvironment", lambda: environment)
    monkeypatch.setattr(allreduce, "set_up_ranks", lambda given: order.append("meet"))
    monkeypatch.setattr(allreduce, "remove_rendezvous", lambda given: order.append("leave"))
    monkeypatch.setattr(allreduce.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed, "init_process_group", begin)
    monkeypatch.setattr(distributed, "barrier", lambda: order.append("barrier"))
    monkeypatch.setattr(distributed, "all_reduce", add_up)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: order.append("end"))
    all_reduce(str(tmp_path))
    assert order == ["meet", "begin gloo 120 None", *["barrier"] * 5, "gather", "end", "leave"]
    assert summed == [[rank + 1.0]] * 5
    if rank:
        assert list(tmp_path.iterdir()) == []
        return
    row = json.loads((tmp_path / RESULT_NAME).read_text())
    assert row == {
        "world_size": 3, "hosts": ["node1", "node2"], "device": "cpu", "wrong": wrong, "ms": 250.0,
        "gb_per_s": pytest.approx(2 * 2 / 3 * 2e6 / 0.25 / 1e9),
    }  # fmt: skip


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What was submitted; the job writes what a test put under `row`, and its log where there is a `log`."""
    noted: dict[str, Any] = {"row": ROW, "log": False}

    def submit(function: Any, folders: list[str], cluster: str, request: Request) -> list[Any]:
        noted.update(function=function, folders=folders, cluster=cluster, request=request)
        log = tmp_path / "job.out"
        if noted["row"]:
            (Path(folders[0]) / RESULT_NAME).write_text(json.dumps(noted["row"]))
        if noted["log"]:
            log.touch()
        return [SimpleNamespace(job_id="12", paths=SimpleNamespace(stdout=log))]

    def wait(*given: Any) -> str:
        noted["waited"] = given
        return "job 12 ended: FAILED"

    monkeypatch.setattr(allreduce, "submit", submit)
    monkeypatch.setattr(allreduce, "await_job", wait)
    return noted


def test_with_gpus_each_process_has_its_own_and_waits_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fourth process of a node with two has the second of them again."""
    environment = SimpleNamespace(global_rank=0, local_rank=3, num_tasks=1, hostname="node1")
    begun: list[Any] = []
    waits: list[str] = []
    full = torch.full
    monkeypatch.setattr(allreduce.submitit, "JobEnvironment", lambda: environment)
    monkeypatch.setattr(allreduce, "set_up_ranks", lambda given: None)
    monkeypatch.setattr(allreduce, "remove_rendezvous", lambda given: None)
    monkeypatch.setattr(torch, "full", lambda shape, value, device: full((1,), value))
    for name, answer in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append("all summed"))
    monkeypatch.setattr(
        distributed, "init_process_group", lambda backend, **how: begun.append((backend, how["device_id"]))
    )
    monkeypatch.setattr(distributed, "all_gather_object", lambda ranks, own: ranks.__setitem__(0, own))
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(distributed, name, lambda: None)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: None)
    all_reduce(str(tmp_path))
    assert begun == [("nccl", torch.device("cuda", 1))]
    assert len(waits) == 5
    row = json.loads((tmp_path / RESULT_NAME).read_text())
    assert (row["device"], row["wrong"], row["hosts"]) == ("cuda", 0, ["node1"])


def test_processes_that_were_asked_for_are_there_without_gpus_too(
    submitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allreduce, "visible_gpus", list)
    finding = check_all_reduce(setup_of(tmp_path, Resources(gpus_per_node=2, tasks_per_node=2), "local"))
    assert (finding.status, submitted["request"].resources.gpus_per_node) == ("ok", 0)


def setup_of(tmp_path: Path, resources: Resources, cluster: Any = "slurm") -> Setup:
    return Setup(Command(resources, runs_dir=tmp_path / "runs", cluster=cluster, wait_min=2.0), tmp_path)


def test_a_short_job_has_what_a_trial_would_have(submitted: dict[str, Any], tmp_path: Path) -> None:
    finding = check_all_reduce(setup_of(tmp_path, Resources(nodes=2, gpus_per_node=0, mem_gb=3, timeout_min=900)))
    shown = f"2 processes (cpu) on a, b: {MEGABYTES} MB in 2.0 ms, 32.00 GB/s; all sums right"
    assert (finding.status, finding.detail) == ("ok", shown)
    (folder,) = map(Path, submitted["folders"])
    assert folder.parent == tmp_path / "runs"  # which all nodes see
    assert folder.name.startswith(".doctor-")
    assert not folder.exists()
    asked = Resources(nodes=2, gpus_per_node=0, mem_gb=3, timeout_min=5, signal_delay_s=30)
    assert submitted["request"] == Request(folder, asked, "petseg-doctor", 1)
    assert (submitted["function"], submitted["cluster"]) == (all_reduce, "slurm")
    assert submitted["waited"] == ("12", folder, 120.0)


@pytest.mark.parametrize(
    ("log", "cluster", "detail"),
    [
        (True, "slurm", "job 12 ended: FAILED"),
        (False, "slurm", "job 12 ended: FAILED"),
        (True, "local", "2 processes did not come to an end"),
    ],
)
def test_a_job_that_writes_nothing_down_is_traced_by_its_log(
    submitted: dict[str, Any], tmp_path: Path, log: bool, cluster: str, detail: str
) -> None:
    submitted |= {"row": None, "log": log}
    finding = check_all_reduce(setup_of(tmp_path, Resources(nodes=2, gpus_per_node=0), cluster))
    assert (finding.status, finding.detail) == ("FAIL", detail)
    (folder,) = submitted["folders"]
    unseen = f"the nodes do not see {folder}: give another --runs-dir"
    assert finding.advice == (f"its log: {tmp_path / 'job.out'}" if log else unseen)
    assert Path(folder).exists()
    assert ("waited" in submitted) == (cluster == "slurm")


@pytest.mark.parametrize(("cluster", "gpus", "processes"), [("local", [], 1), ("local", ["0"], 2), ("slurm", [], 2)])
def test_gpus_are_asked_for_where_they_may_be(
    submitted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: str,
    gpus: list[str],
    processes: int,
) -> None:
    """A machine without any runs a trial in one process on its CPU: there is nothing to add up."""
    monkeypatch.setattr(allreduce, "visible_gpus", lambda: gpus)
    finding = check_all_reduce(setup_of(tmp_path, Resources(gpus_per_node=2), cluster))
    if processes == 1:
        assert (finding.status, finding.detail.split(":")[0]) == ("warn", "a trial has one process")
        assert "request" not in submitted
    else:
        assert submitted["request"].resources.gpus_per_node == 2
        assert finding.detail.endswith("but GPUs were asked for")


@pytest.mark.parametrize(
    ("states", "seconds", "words"),
    [
        ([WAITS, RUNS, OVER], [0, 1, 2], "job 12 ended: FAILED NonZeroExitCode"),
        ([WAITS, WAITS, WAITS], [0, 5, 6], "job 12 was PENDING (Priority) for 0 minutes"),
        ([WAITS, RUNS, RUNS, RUNS, OVER], [0, 5, 100, 365, 0], "job 12 ended: FAILED NonZeroExitCode"),
        ([WAITS, RUNS, RUNS, RUNS], [0, 5, 365, 366], "job 12 was RUNNING (no reason) for 6 minutes"),
    ],
)
def test_a_job_that_waits_or_runs_for_too_long_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    states: list[JobState],
    seconds: list[float],
    words: str,
) -> None:
    """The wait is the user's choice; a job that has begun has one minute more than its own limit of five."""
    left, clock = iter(states), iter([0.0, *seconds])
    called: list[list[str]] = []
    monkeypatch.setattr(allreduce, "job_states", lambda ids: {ids[0]: next(left)})
    monkeypatch.setattr(
        allreduce, "time", SimpleNamespace(monotonic=lambda: 1e6 + next(clock), sleep=lambda seconds: None)
    )
    monkeypatch.setattr(subprocess, "run", lambda command, **how: called.append(command))
    assert await_job("12", tmp_path, wait_s=5) == words
    assert called == [["scancel", "12"]]
    assert next(left, None) is None


def test_ctrl_c_cancels_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(ids: list[str]) -> dict[str, JobState]:
        raise KeyboardInterrupt

    called: list[list[str]] = []
    monkeypatch.setattr(allreduce, "job_states", interrupt)
    monkeypatch.setattr(subprocess, "run", lambda command, **how: called.append(command))
    with pytest.raises(KeyboardInterrupt):
        await_job("12", tmp_path, 5)
    assert called == [["scancel", "12"]]
