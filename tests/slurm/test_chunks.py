"""Arrays that share one limit on the jobs that run at a time: laws of the plan, and a real Slurm that keeps to it."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm import arrays, cluster
from slurm.chunks import Chunk, plan_chunks, throttle_of_last
from slurm.executor import submit
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site
from slurm.request import Request
from slurm.resources import Resources
from slurm.room import Room

SMALL = Resources(gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5)


def shown(planned: list[Chunk]) -> list[tuple[int, int, int | None]]:
    return [(len(chunk.indices), chunk.throttle, chunk.after) for chunk in planned]


def test_without_a_limit_arrays_are_as_large_as_they_may_be() -> None:
    assert shown(plan_chunks(2500, 1001, 2500)) == [(1001, 1001, None), (1001, 1001, None), (498, 498, None)]
    assert shown(plan_chunks(1001, 1001, 7)) == [(1001, 7, None)]


def test_a_limit_is_shared_out_over_arrays_that_run_side_by_side() -> None:
    assert shown(plan_chunks(120, 50, 60)) == [(40, 20, None)] * 3
    assert shown(plan_chunks(120, 50, 30)) == [(40, 10, None)] * 3


def test_where_the_limit_is_less_than_the_arrays_some_wait_for_others() -> None:
    assert shown(plan_chunks(120, 50, 1)) == [(40, 1, None), (40, 1, 0), (40, 1, 1)]
    assert shown(plan_chunks(120, 50, 2)) == [(30, 1, None), (30, 1, None), (30, 1, 0), (30, 1, 1)]


@given(st.integers(1, 150), st.integers(1, 60), st.integers(1, 200))
def test_every_job_once_and_never_more_at_a_time_than_the_limit(count: int, largest: int, limit: int) -> None:
    planned = plan_chunks(count, largest, limit)
    assert [place for chunk in planned for place in chunk.indices] == list(range(count))
    assert all(len(chunk.indices) <= largest for chunk in planned)
    at_once = {chunk.lane: chunk.throttle for chunk in planned}
    assert sum(at_once.values()) == min(count, limit)
    for index, chunk in enumerate(planned):
        assert chunk.throttle == at_once[chunk.lane] or limit >= count
        before = [place for place in range(index) if planned[place].lane == chunk.lane]
        assert chunk.after == (before[-1] if before else None)
        assert throttle_of_last(planned, index, limit) + sum(
            {one.lane: one.throttle for one in planned[:index] if one.lane != chunk.lane}.values()
        ) == limit  # fmt: skip


@pytest.fixture(scope="module")
def small_arrays(slurm_daemons: None) -> Iterator[Cluster]:
    with rehearse(Site(nodes=1, cpus=16, gpus=0, conf={"MaxArraySize": "4"})) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.slurm
def test_three_arrays_run_six_jobs_at_a_time(
    small_arrays: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., None]
) -> None:
    for name, value in small_arrays.env.items():
        monkeypatch.setenv(name, value)
    running = tmp_path / "running"
    running.mkdir()

    def task(item: int) -> int:
        import time

        (running / str(item)).touch()
        at_once = len(list(running.iterdir()))
        while not (tmp_path / "go").exists():
            time.sleep(0.05)
        (running / str(item)).unlink()
        return at_once

    items = list(range(10))
    jobs = submit(task, items, "slurm", Request(tmp_path / "logs", SMALL, "t", 6))
    assert len({job.job_id.partition("_")[0] for job in jobs}) == 3
    wait_for(lambda: len(list(running.iterdir())) == 6)  # more than one array has
    (tmp_path / "go").touch()
    wait_for(lambda: all(job.paths.result_pickle.exists() for job in jobs))
    assert max(job.result() for job in jobs) == 6


@pytest.mark.parametrize(
    ("room", "orders"),
    [
        ([1], ["update JobId=1 ArrayTaskThrottle=2"]),
        ([2, 1], []),  # the second array has its own share, although one of its jobs is left
        ([2, 0], ["update JobId=1 ArrayTaskThrottle=2"]),
    ],
)
def test_the_last_array_gets_the_shares_of_arrays_without_room(
    room: list[int], orders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two arrays of two jobs, of which one each may run at a time; sbatch and scontrol are stand-ins."""
    answers = iter(room)
    stand_ins = {
        "sbatch": f"echo x >>{tmp_path}/arrays; wc -l <{tmp_path}/arrays",
        "scontrol": f'echo "$@" >>{tmp_path}/orders',
        "srun": "",
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cluster, "max_array_size", lambda: 2)
    monkeypatch.setattr(
        arrays, "find_room", lambda count, script: Room(found := next(answers), "" if found == count else "full")
    )
    jobs = submit(abs, [1, 2, 3, 4], "slurm", Request(tmp_path / "logs", SMALL, "t", 2, as_many_as_fit=True))
    assert len(jobs) == sum(room)
    noted = tmp_path / "orders"
    assert (noted.read_text().splitlines() if noted.exists() else []) == orders


@pytest.mark.slurm
def test_the_only_array_for_which_there_is_room_has_the_whole_limit(
    set_limit: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for only the first of three arrays with one job at a time each."""
    monkeypatch.setattr(cluster, "max_array_size", lambda: 4)
    set_limit("user", getpass.getuser(), MaxSubmitJobs=3)
    jobs = submit(abs, list(range(10)), "slurm", Request(tmp_path, SMALL, "t", 3, as_many_as_fit=True))
    assert len(jobs) == 3
    command = ["scontrol", "show", "job", jobs[0].job_id.partition("_")[0]]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert "ArrayTaskThrottle=3" in shown.split()
