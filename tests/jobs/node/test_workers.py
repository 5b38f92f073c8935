"""A job that trains several trials side by side hands its signals on to the processes that train them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from jobs.node import workers
from petseg.training import interrupt

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
