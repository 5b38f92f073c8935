"""How long work is told: durations in words, and the lines of a log file."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.table import Table

from shards import terminal
from shards.terminal import FILE_WIDTH, Terminal, duration, progress, table_terminal


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


def test_nothing_that_is_shown_gives_the_terminal_orders() -> None:
    file = io.StringIO()
    console = Terminal(file=file, width=60, force_terminal=True, highlight=False)
    table = Table()
    table.add_column("a\x1b]0;t")
    table.add_row("[red]x[/red] \u202e")
    table.add_row("a row that is wide enough for escapes")
    console.print(table)
    console.print("[bold]y\x9b[/bold]", style="bold")
    shown = file.getvalue()
    assert "a\\x1b]0;t" in shown
    assert "[red]x[/red] \\u202e" in shown
    assert "\x1b[1m[bold]y\\x9b[/bold]\x1b[0m" in shown  # the style is of ours
    assert not set("\x9b\u202e") & set(shown)


@pytest.mark.parametrize(("is_terminal", "width"), [(True, 77), (False, FILE_WIDTH)])
def test_tables_are_as_wide_as_the_terminal_and_wide_in_a_file(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert table_terminal().width == width


def test_a_bar_goes_on_by_the_steps_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress("packed\x9b", 7) as advance:
        advance(2)
        advance(3)
    shown = screen.getvalue()
    assert "packed" in shown
    assert "\x9b" not in shown
    assert "5/7" in shown
    assert shown.endswith("\x1b[2K")  # the line is cleared
