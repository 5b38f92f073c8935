"""A job that trains several trials side by side hands its signals on to the processes that train them."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

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
