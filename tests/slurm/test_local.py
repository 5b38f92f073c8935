from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit

from slurm import local
from slurm.executor import submit
from slurm.gpus import visible_gpus
from slurm.local import run_local
from slurm.rehearsal.daemons import start_ticks
from slurm.request import Request
from slurm.resources import Resources

CPU = Resources(gpus_per_node=0, timeout_min=5)


@pytest.fixture
def lax_umask() -> Iterator[None]:
    """As on clusters where new files belong to a group that may write them."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_no_more_than_the_limit_at_a_time(tmp_path: Path, lax_umask: None):
    running, started = tmp_path / "running", tmp_path / "started"
    running.mkdir()
    started.mkdir()

    def task(item: int) -> int:
        import time

        (running / str(item)).touch()
        (started / str(item)).touch()
        most = 0
        for _ in range(3000):  # until another one has run beside this one, or was before it
            most = max(most, len(list(running.iterdir())))
            if len(list(started.iterdir())) >= 2:
                break
            time.sleep(0.01)
        else:
            raise RuntimeError("alone")
        (running / str(item)).unlink()
        return most

    seen: list[tuple[int, str]] = []
    jobs = submit(
        task,
        list(range(4)),
        "local",
        Request(tmp_path / "jobs", CPU, "t", 2),
        on_job=lambda index, job, state: seen.append((index, state)),
    )

    assert max(job.result() for job in jobs) == 2
    at_once = 0
    for _, state in seen:
        at_once += 1 if state == "started" else -1
        assert at_once <= 2
    assert sorted(seen) == [(index, state) for index in range(4) for state in ("ended", "started")]
    assert (tmp_path / "jobs").stat().st_mode & 0o022 == 0


def test_one_failure_does_not_stop_the_others(tmp_path: Path):
    def task(item: int) -> int:
        if item == 0:
            raise ValueError("bad picture")
        return item

    jobs = submit(task, [0, 1], "local", Request(tmp_path, CPU, "t", 1))
    assert "bad picture" in str(jobs[0].exception())
    assert jobs[1].result() == 1


def test_two_processes_know_their_ranks(tmp_path: Path):
    def task(item: int) -> tuple[int, int]:
        import submitit

        environment = submitit.JobEnvironment()
        return environment.global_rank, environment.num_tasks

    two = Resources(gpus_per_node=0, tasks_per_node=2, timeout_min=5)
    (job,) = submit(task, [0], "local", Request(tmp_path, two, "t", 1))
    assert job.results() == [(0, 2), (1, 2)]


@pytest.mark.parametrize("stubborn", [False, True])
def test_ctrl_c_lets_jobs_save_and_leaves_none_behind(tmp_path: Path, stubborn: bool, wait_for: Callable[..., None]):
    def task(item: int) -> None:
        import os
        import signal
        import sys
        import time

        def save(signum: int, frame: object) -> None:
            (tmp_path / f"saved-{item}").touch()
            if not stubborn:
                sys.exit(75)

        signal.signal(signal.SIGTERM, save)
        if stubborn:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        (tmp_path / f"pid-{item}.part").write_text(str(os.getpid()))
        (tmp_path / f"pid-{item}.part").rename(tmp_path / f"pid-{item}")
        while True:
            time.sleep(0.05)

    def on_job(index: int, job: submitit.Job[object], state: str) -> None:
        if (index, state) == (1, "started"):
            wait_for(lambda: all((tmp_path / f"pid-{item}").exists() for item in range(2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(
            task, [0, 1, 2], Request(tmp_path / "jobs", CPU, "t", 2), on_job=on_job, save_grace_s=1 if stubborn else 30
        )

    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert [start_ticks(int((tmp_path / f"pid-{item}").read_text())) for item in range(2)] == [None, None]
    assert not (tmp_path / "pid-2").exists()


def test_processes_of_a_controller_that_ignores_signals_are_killed(
    tmp_path: Path, wait_for: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(local, "KILL_GRACE_S", 0.0)
    script = f"trap '' TERM INT; sleep 100 & echo $! >{tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; wait; wait"
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    wait_for((tmp_path / "pid").exists)
    local.cancel([SimpleNamespace(_process=process)], save_grace_s=0.0)
    assert process.returncode == -signal.SIGKILL
    wait_for(lambda: start_ticks(int((tmp_path / "pid").read_text())) is None)


def test_each_job_has_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,5")
    running: set[int] = set()
    most = 0

    def on_job(index: int, job: submitit.Job[object], state: str) -> None:
        nonlocal most
        (running.add if state == "started" else running.discard)(index)
        most = max(most, len(running))

    def task(item: int) -> str:
        import os

        return os.environ["CUDA_VISIBLE_DEVICES"]

    one = Resources(gpus_per_node=1, timeout_min=5)
    jobs = run_local(task, [0, 1, 2, 3], Request(tmp_path, one, "t", 9), on_job=on_job)
    assert most == 3
    assert {job.result() for job in jobs} == {"1", "3", "5"}


def test_what_this_machine_cannot_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for resources, message in (
        (Resources(gpus_per_node=2), r"gpus=2: this machine shows 1; use --gpus 0"),
        (Resources(nodes=2), r"nodes=2: this machine is one node; use --cluster slurm"),
    ):
        with pytest.raises(ValueError, match=message):
            submit(abs, [1], "local", Request(tmp_path, resources, "t", 1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    with pytest.raises(ValueError, match="indices only"):
        visible_gpus()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert visible_gpus() == []


def test_a_job_alone_gets_the_first_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    two = Resources(gpus_per_node=2, timeout_min=5)

    def task(name: str) -> str:
        import os  # else the pickle would carry this process's os.environ

        return os.environ[name]

    (job,) = submit(task, ["CUDA_VISIBLE_DEVICES"], "local", Request(tmp_path, two, "t", 2))
    assert job.results() == ["0,1", "0,1"]  # of its two processes


@pytest.mark.parametrize(
    ("gpus_per_job", "max_parallel", "slots"),
    [
        (0, 2, [[], []]),
        (1, 9, [[8], [6], [4], [2], [0]]),
        (2, 9, [[4, 6], [0, 2]]),  # the fifth GPU stays idle
        (2, 1, [[0, 2]]),
        (5, 1, [[0, 2, 4, 6, 8]]),
    ],
)
def test_gpus_are_dealt_out_in_order_and_taken_from_the_end(
    monkeypatch: pytest.MonkeyPatch, gpus_per_job: int, max_parallel: int, slots: list[list[int]]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,4,6,8")
    assert local._gpu_slots(gpus_per_job, max_parallel) == slots


def test_the_second_ctrl_c_does_not_wait_for_what_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "trap 'echo saving' TERM; trap 'exit 3' INT; echo; while :; do sleep 0.01; done"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        sleep, slept = local.time.sleep, []

        def interrupted(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 1:
                assert process.stdout is not None
                assert process.stdout.readline() == "saving\n"
                raise KeyboardInterrupt
            sleep(seconds)

        monkeypatch.setattr(local.time, "sleep", interrupted)
        local.cancel([SimpleNamespace(_process=None), SimpleNamespace(_process=process)], save_grace_s=600)
        assert process.returncode == 3


def test_a_folder_that_is_there_keeps_its_permissions(tmp_path: Path, lax_umask: None) -> None:
    (tmp_path / "shared").mkdir(mode=0o775)
    local.require_folder(tmp_path / "shared")
    local.require_folder(tmp_path / "own" / "jobs")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("shared", "own/jobs")]
    assert modes == [0o775, 0o755]
