"""How long work is told: durations in words, and the lines of a log file."""

from __future__ import annotations

import logging

import pytest

from shards import terminal
from shards.terminal import duration, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (89.4, "89 s"), (90, "2 min"), (149, "2 min"), (151, "3 min"), (89.4 * 60, "89 min"),
        (90 * 60, "1 h 30 min"), (125 * 60, "2 h 05 min"), (26 * 3600, "26 h 00 min"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_ten_lines_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of the 40 steps takes 2 s, so that 2 s are left for each that is not done."""
    caplog.set_level(logging.INFO)
    clock = [100.0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with progress("packed", 40) as advance:
        for _ in range(20):
            clock[0] += 4
            advance(2)
    lines = [record.getMessage() for record in caplog.records]
    done = range(4, 40, 4)
    assert lines == [*(f"packed: {n} of 40, {duration(2 * (40 - n))} left" for n in done), "packed: 40 of 40"]


def test_steps_larger_than_a_tenth_have_a_line_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with progress("read", 3) as advance:
        advance(2)
        advance(0)
        advance(1)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["read: 2 of 3", "read: 3 of 3"]
