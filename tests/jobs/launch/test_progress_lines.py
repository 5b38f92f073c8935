"""When the lines of a sweep on this machine are printed, and when its table is drawn."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch import local_progress
from jobs.launch.local_progress import LINE_EVERY_S, LOOK_EVERY_S, RunningTrial


class Clock:
    """Stands in for the event that ends the thread, and for time: each wait lasts as long as it may."""

    def __init__(self, looks: int) -> None:
        self.looks, self.time, self.waited = looks, 5000.0, set[float]()

    def wait(self, seconds: float) -> bool:
        self.looks -= 1
        self.time += seconds
        self.waited.add(seconds)
        return self.looks < 0


class Progress:
    """What `_show` asks; each look finds another epoch, and the third fails."""

    def __init__(self) -> None:
        self.number = 0

    def look(self) -> list[RunningTrial]:
        self.number += 1
        if self.number == 3:
            raise OSError("stale file handle")
        trial: Any = SimpleNamespace(label="unet seed=0")
        return [RunningTrial(trial, self.number, 900, 0.0, None, None)]

    def summary(self, running: list[RunningTrial]) -> str:
        return "0 of 1 trials have ended"

    def render(self, running: list[RunningTrial], width: int) -> str:
        return f"epoch {running[0].epoch} at {width}"


def shown(monkeypatch: pytest.MonkeyPatch, clock: Clock, live: Any = None, lines: bool = True) -> None:
    monkeypatch.setattr(local_progress, "time", SimpleNamespace(monotonic=lambda: clock.time))
    progress: Any = Progress()
    event: Any = clock
    local_progress._show(progress, event, live, lines)


def test_lines_come_at_even_times_while_looks_are_more_frequent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    looks_per_line = round(LINE_EVERY_S / LOOK_EVERY_S)
    assert looks_per_line > 1
    clock = Clock(3 * looks_per_line)
    shown(monkeypatch, clock)
    assert clock.waited == {LOOK_EVERY_S}
    epochs = [record.getMessage() for record in caplog.records if "epoch" in record.getMessage()]
    assert [text.split("epoch ")[1].split("/")[0] for text in epochs] == [str(n * looks_per_line) for n in (1, 2, 3)]


def test_on_a_terminal_the_table_is_drawn_at_each_look_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    drawn: list[tuple[str, bool]] = []
    live = SimpleNamespace(
        console=SimpleNamespace(width=71), update=lambda text, refresh=False: drawn.append((text, refresh))
    )
    shown(monkeypatch, Clock(4), live)
    assert drawn == [(f"epoch {n} at 71", True) for n in (1, 2, 4)]
    assert not caplog.records


def test_without_lines_only_the_looks_are_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shown(monkeypatch, Clock(200), lines=False)
    assert not caplog.records
