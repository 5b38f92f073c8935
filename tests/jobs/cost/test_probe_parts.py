"""What the probe of a trial's cost times."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.cost import probe


def test_a_save_takes_what_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.5])
    saved: list[tuple[Path, Any]] = []
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(probe, "save_checkpoint", lambda folder, step, learner, state: saved.append((folder, learner)))
    parts: Any = SimpleNamespace(learner="weights and moments")
    assert probe.time_save(parts, tmp_path) == 2.5
    assert saved == [(tmp_path / "checkpoints", "weights and moments")]
