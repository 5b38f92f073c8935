"""A job that trains several trials side by side hands its signals on to the processes that train them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.node import workers
from jobs.node.workers import NODE_FAULT, REQUEUE, Order, WorkerFailed, work_off
from petseg.footprint.gpus import NodeFault
from petseg.training import interrupt
from shards.command import FAILED, INTERRUPTED, OK, Interrupted

# ends with 7 at USR2, and by itself after a while
LISTENS = """
import signal, sys
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))
signal.alarm(30)
print("ready", flush=True)
signal.pause()
"""


def test_each_signal_from_the_first_on_reaches_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", LISTENS]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for child in children:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
        monkeypatch.setattr(interrupt, "received", lambda: (signal.SIGUSR2,))
        assert workers.await_all(children) == [7, 7]
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.parametrize(("at_once", "started"), [(2, [1, 2]), (9, [1, 2, 3])])
def test_no_more_workers_are_started_than_there_are_trials(
    monkeypatch: pytest.MonkeyPatch, at_once: int, started: list[int]
) -> None:
    orders: list[workers.Order] = []
    monkeypatch.setattr(workers.submitit, "JobEnvironment", lambda: None)
    monkeypatch.setattr(workers, "start", lambda order, environment: orders.append(order))
    monkeypatch.setattr(workers, "await_all", lambda processes: [0] * len(processes))
    workers.work_off(["a", "b", "c"], at_once, threads=1)
    assert [order.slot for order in orders] == started
    assert {order.at_once for order in orders} == {len(started)}


def end_with(monkeypatch: pytest.MonkeyPatch, *codes: int) -> None:
    """Three trials are worked off by workers that end with these exit codes."""
    monkeypatch.setattr(workers.submitit, "JobEnvironment", lambda: None)
    monkeypatch.setattr(workers, "start", lambda order, environment: order)
    monkeypatch.setattr(workers, "await_all", lambda processes: list(codes))
    work_off(["a", "b", "c"], len(codes), threads=1)


@pytest.mark.parametrize(
    ("codes", "requeue"),
    [((OK, INTERRUPTED), False), ((INTERRUPTED, REQUEUE), True), ((FAILED, REQUEUE), True), ((NODE_FAULT, 75), False)],
)
def test_a_job_with_a_worker_that_was_interrupted_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...], requeue: bool
) -> None:
    """Another one's failure does not hide it: what was interrupted would not be trained to the end."""
    with pytest.raises(Interrupted) as stopped:
        end_with(monkeypatch, *codes)
    assert stopped.value.requeue is requeue


def test_a_node_that_fails_one_worker_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NodeFault, match="workers 2, 3 see none"):
        end_with(monkeypatch, FAILED, NODE_FAULT, NODE_FAULT)


def test_workers_that_failed_are_named_with_how(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerFailed) as failed:
        end_with(monkeypatch, OK, FAILED, -signal.SIGKILL)
    assert str(failed.value) == "worker 2 ended with exit code 3; worker 3 was killed by SIGKILL"
    end_with(monkeypatch, OK, OK)


def test_each_trial_is_taken_by_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def work(order: Order, environment: object) -> None:
        trials = workers.take(order)
        taken.append(next(trials))
        if order.slot == order.at_once:  # the others are busy: the last one works off the rest
            taken.extend(trials)

    folders = [str(number) for number in range(300)]  # more than one byte counts
    monkeypatch.setattr(workers.submitit, "JobEnvironment", lambda: None)
    monkeypatch.setattr(workers, "start", work)
    monkeypatch.setattr(workers, "await_all", lambda processes: [OK])
    work_off(folders, 3, threads=1)
    assert taken == folders


def test_more_trials_than_a_pipe_holds_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.submitit, "JobEnvironment", lambda: None)
    monkeypatch.setattr(workers, "_capacity", lambda pipe: 2 * workers.INDEX_BYTES)
    with pytest.raises(ValueError, match="3 trials in one job: too many; lower --trials-per-job"):
        work_off(["a", "b", "c"], 1, threads=1)


def test_an_order_is_read_as_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(2, 1, 3, 9, ("a", "b"), ("s3://bucket/pets",))
    monkeypatch.setattr(workers.threading, "Thread", lambda **about: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(workers.sys, "stdin", io.StringIO(json.dumps(asdict(order)) + "\n"))
    assert workers.read_order() == order


def test_trials_that_just_fill_the_pipe_are_taken_and_no_pipe_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_capacity", lambda pipe: 3 * workers.INDEX_BYTES)
    before = len(list(Path("/proc/self/fd").iterdir()))
    end_with(monkeypatch, OK)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_each_worker_is_told_its_slot_and_the_whole_list(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(workers.submitit, "JobEnvironment", lambda: "the job")
    monkeypatch.setattr(workers, "start", lambda order, environment: given.append((order, environment)))
    monkeypatch.setattr(workers, "await_all", lambda processes: [OK, OK])
    work_off(["a", "b", "c"], 2, threads=7, named=("s3://x",))
    (first, job), (second, _) = given
    assert (first.threads, first.slot, first.at_once, first.folders) == (7, 1, 2, ("a", "b", "c"))
    assert (first.named, job, first.queue == second.queue) == (("s3://x",), "the job", True)
    work_off(["a"], 1, threads=1)
    assert given[-1][0].named == ()


# stands for Python: tells its words, the order that it reads, and whether it has the pipe
WORKER = """#!/bin/sh
read order
echo "$@"
echo "$order"
[ -e /proc/self/fd/QUEUE ] && echo "has the pipe" >&2
read end || echo "input ended"
"""


def test_a_worker_gets_its_order_the_pipe_and_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    python = tmp_path / "python"
    python.write_text(WORKER.replace("QUEUE", str(reader)))
    python.chmod(0o755)
    (tmp_path / "12_0_2_log.out").write_text("of the start before\n")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setattr(workers.sys, "executable", str(python))
    order = Order(1, 2, 2, reader, ("a", "b"))
    environment: Any = SimpleNamespace(job_id="12_0")
    process = workers.start(order, environment)
    log, deadline = tmp_path / "12_0_2_log.out", time.monotonic() + 30
    try:
        assert process.stdin is not None
        while "has the pipe" not in log.read_text():  # it has its order while its input is open
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(reader)
        os.close(writer)
    assert log.read_text().splitlines() == [
        "of the start before", f"-u -m jobs.node.worker submitit {tmp_path}", json.dumps(asdict(order)),
        "has the pipe", "input ended",
    ]  # fmt: skip


class Child:
    """A worker that ends after so many looks."""

    def __init__(self, looks: int, code: int) -> None:
        self.looks, self.code, self.got = looks, code, list[int]()

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 else self.code

    def wait(self) -> int:
        return self.code

    def send_signal(self, number: int) -> None:
        self.got.append(number)


def test_all_workers_are_awaited_and_each_signal_is_handed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[int] = []

    def sleep(seconds: float) -> None:
        assert seconds == workers.POLL_S
        came.append((10, 12, 10)[min(len(came), 2)])

    monkeypatch.setattr(workers.interrupt, "received", lambda: tuple(came))
    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=sleep))
    children: list[Any] = [Child(0, -signal.SIGKILL), Child(4, OK)]
    assert workers.await_all(children) == [-signal.SIGKILL, OK]
    assert [child.got for child in children] == [[10, 12, 10]] * 2


def test_a_worker_that_a_signal_ended_before_it_began_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [-signal.SIGTERM, -interrupt.REQUEUE_SIGNAL, -signal.SIGKILL, FAILED]
    children: list[Any] = [Child(0, code) for code in codes]
    assert workers.await_all(children) == [INTERRUPTED, REQUEUE, -signal.SIGKILL, FAILED]


def test_the_end_of_its_input_ends_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[dict[str, Any]] = []
    killed: list[tuple[int, int]] = []
    reader, writer = os.pipe()
    os.write(writer, b"more")
    os.close(writer)
    order = json.dumps(asdict(Order(2, 1, 3, 9, ("a",)))) + "\n"
    stdin = SimpleNamespace(readline=lambda: order, fileno=lambda: reader)
    monkeypatch.setattr(workers.sys, "stdin", stdin)
    monkeypatch.setattr(
        workers.threading, "Thread", lambda **about: threads.append(about) or SimpleNamespace(start=about["target"])
    )
    monkeypatch.setattr(workers.os, "kill", lambda *given: killed.append(given))
    assert workers.read_order().folders == ("a",)
    assert killed == [(os.getpid(), signal.SIGTERM)]
    assert os.read(reader, 9) == b""  # all had been read
    assert threads[0]["daemon"] is True  # its wait does not keep the process
    os.close(reader)
