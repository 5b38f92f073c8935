"""A measured figure beside its limit."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure: the median of several, and the machine's load of the last minute when it was there."""

    name: str
    value: float
    unit: str
    limit: float | None  # at most this much; None: only told
    runs: tuple[float, ...]
    load: float
    note: str = ""

    @classmethod
    def of(cls, name: str, runs: Sequence[float], unit: str, limit: float | None, note: str = "") -> Row:
        return cls(name, statistics.median(runs), unit, limit, tuple(runs), os.getloadavg()[0], note)

    @property
    def kept(self) -> bool | None:
        return None if self.limit is None else self.value <= self.limit

    @property
    def value_text(self) -> str:
        return f"{self.value:,.0f} calls" if self.unit == "calls" else f"{self.value:,.2f} {self.unit}"

    @property
    def limit_text(self) -> str:
        return "" if self.limit is None else f"{self.limit:g} {self.unit}"

    def text(self) -> str:
        limit = f" (limit {self.limit_text})" if self.limit is not None else ""
        runs = " ".join(f"{run:.2f}" for run in self.runs)
        return f"{self.name}: {self.value_text}{limit}; runs: {runs}{'; ' if self.note else ''}{self.note}"
