"""Results come in order from any number of processes, and a killed one is noticed."""

import logging
import os
import sys

import pytest

from shards.command import Failure
from shards.pool import ordered_map
from shards.terminal import progress


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order(num_workers: int) -> None:
    assert list(ordered_map(abs, range(-50, 0), num_workers=num_workers)) == list(range(50, 0, -1))


def test_an_error_travels() -> None:
    with pytest.raises(TypeError):
        list(ordered_map(abs, [1, "x", 2], num_workers=2))


def test_a_killed_worker_is_noticed() -> None:
    with pytest.raises(Failure, match="a worker process was killed"):
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
