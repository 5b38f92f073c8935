"""What a validation measures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from petseg.training import loop
from petseg.training.loop import validate


@pytest.mark.parametrize("averaged", [False, True])
def test_a_validation_measures_the_kept_weights_with_statistics_that_all_ranks_share(
    monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    done: list[str] = []

    @contextlib.contextmanager
    def in_place() -> Iterator[None]:
        done.append("averages in")
        yield
        done.append("averages out")

    def measure(parts: Any, split: str) -> Any:
        done.append(f"measure {split}")
        return SimpleNamespace(summary=lambda name: {f"{name}/dice": 0.5})

    monkeypatch.setattr(loop, "measure", measure)
    parts: Any = SimpleNamespace(
        sync_buffers=lambda: done.append("sync"), ema=SimpleNamespace(in_place=in_place) if averaged else None
    )
    row = validate(parts)
    assert done == (["sync", "averages in", "measure val", "averages out"] if averaged else ["sync", "measure val"])
    assert row["val/dice"] == 0.5
    assert row["perf/validation_s"] >= 0
