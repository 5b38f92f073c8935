"""When an attempt saves next."""

from __future__ import annotations

from pathlib import Path

import pytest

from petseg.run.run import CurrentAttempt


@pytest.mark.parametrize(
    ("every_min", "elapsed_s", "is_due"),
    [
        (0.0, 1e9, False),  # 0 = only at the ends of epochs
        (10.0, 599.0, False),
        (10.0, 600.0, True),
        (0.5, 29.0, False),
        (0.5, 31.0, True),
    ],
)
def test_a_save_is_due_once_its_minutes_have_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, every_min: float, elapsed_s: float, is_due: bool
) -> None:
    monkeypatch.setattr("petseg.run.run.time.monotonic", lambda: 5000.0 + elapsed_s)
    assert CurrentAttempt(tmp_path, every_min, saved_at=5000.0).save_due is is_due
