"""Results come in order from any number of processes, and a killed one is noticed."""

import logging
import os
import sys

import pytest

from shards.command import Failure
from shards.pool import WorkerLost, default_workers, ordered_map
from shards.terminal import progress


@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_worker_is_this_process_and_takes_one_item_at_a_time(num_workers: int) -> None:
    taken: list[int] = []

    def items():
        for number in range(3):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: (number, os.getpid()), items(), num_workers=num_workers)
    assert next(results) == (0, os.getpid())
    assert taken == [0]
    assert list(results) == [(1, os.getpid()), (2, os.getpid())]


def test_results_come_in_order_and_few_items_are_taken_ahead_of_them() -> None:
    """Memory is bounded, whatever number of items there is."""
    taken: list[int] = []

    def items():
        for number in range(50):
            taken.append(number)
            yield -number

    results = ordered_map(abs, items(), num_workers=2)
    assert next(results) == 0
    assert len(taken) == 9
    assert next(results) == 1
    assert len(taken) == 10
    assert list(results) == list(range(2, 50))


def test_the_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 7} if pid == 0 else set())
    assert default_workers() == 3


def test_an_error_travels() -> None:
    with pytest.raises(TypeError):
        list(ordered_map(abs, [1, "x", 2], num_workers=2))


def test_a_killed_worker_is_noticed() -> None:
    said = r"^a worker process was killed \(out of memory\?\): try fewer --workers$"
    assert issubclass(WorkerLost, Failure)
    with pytest.raises(WorkerLost, match=said):
        list(ordered_map(os._exit, [9], num_workers=2))


def test_plain_lines_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress("packed", 1000) as advance:
        for _ in range(100):
            advance(10)
    assert len(caplog.messages) == 10
    assert caplog.messages[-1] == "packed: 1000 of 1000"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("packed", 2) as advance:
        advance(1)
    assert caplog.messages == []
