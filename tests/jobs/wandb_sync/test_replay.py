"""How fast runs are sent to wandb, and what is said meanwhile; jobs/sync.py's own tests send real ones."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from jobs.wandb_sync import replay


def test_runs_start_at_the_requested_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, now = [], iter([100.0, 100.0, 100.1, 107.0, 107.0])
    clock = SimpleNamespace(monotonic=lambda: next(now), sleep=slept.append)
    monkeypatch.setattr(replay, "time", clock)
    limit = replay.RateLimit(per_s=2)
    for _ in range(5):
        limit.wait()
    assert slept == pytest.approx([0.0, 0.5, 0.9, 0.0, 0.5])


def test_progress_is_logged_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter([100.0, 101.0, 110.0, 111.0, 119.0, 120.0])
    monkeypatch.setattr(replay, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with caplog.at_level(logging.INFO, replay.__name__), replay.progress_of(10) as advance:
        for done in range(1, 6):
            advance(done)
    assert [record.getMessage() for record in caplog.records] == ["2/10 runs, 40 s left", "5/10 runs, 20 s left"]
