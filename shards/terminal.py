"""The one way in which commands write styled text: nothing that they show can give the terminal orders.

Names, keys, log lines and errors come from files that could be a stranger's, and reach tables, lines and progress bars
by many ways. They are made printable where rich has laid them out, and square brackets in them are no markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from shards.command import printable


class Terminal(Console):
    """rich's console without markup, which shows control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 7 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
