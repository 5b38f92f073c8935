"""The one way in which commands write styled text: nothing that they show can give the terminal orders.

Names, keys, log lines and errors come from files that could be a stranger's, and reach tables, lines and progress bars
by many ways. They are made printable where rich has laid them out, and square brackets in them are no markup.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from shards.command import printable

LINES = 10  # progress lines in a log file
FILE_WIDTH = 200  # characters of a table in a log file or a pipe, where rich would take 80

logger = logging.getLogger(__name__)


class Terminal(Console):
    """rich's console without markup, which shows control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def table_terminal() -> Terminal:
    """A terminal for tables: as wide as the one on stdout, FILE_WIDTH where stdout is none."""
    return Terminal(width=None if sys.stdout.isatty() else FILE_WIDTH)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 7 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(steps)`: a bar with the time left on a terminal, ten plain lines in a log file."""
    if not sys.stderr.isatty():
        yield _log_progress(what, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


def _log_progress(what: str, total: int) -> Callable[[int], None]:
    done, start = 0, time.monotonic()

    def advance(steps: int) -> None:
        nonlocal done
        before, done = done, done + steps
        if done * LINES // total > before * LINES // total:
            left = (time.monotonic() - start) * (total - done) / done
            logger.info("%s: %d of %d%s", what, done, total, f", {duration(left)} left" if done < total else "")

    return advance
