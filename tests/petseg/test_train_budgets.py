"""Runs with a budget of steps or minutes instead of epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from petseg.config import RunConfig
from petseg.optim import learning_rate
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import read_metrics
from petseg.training.loop import train
from shards.command import Interrupted
from tests.petseg.stopped_runs import require_same_bits, stop_and_resume, stop_when, without_clock

Tiny = Callable[..., RunConfig]


def test_a_budget_of_steps_ends_within_an_epoch_and_its_ledger_closes(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(train__budget_steps=10, train__log_every=1, optim__schedule="poly", optim__lr=1e-2)  # 4 in an epoch
    calm = train(config, tmp_path / "calm")
    rows = read_metrics(tmp_path / "calm")
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert [row["data/coverage"] for row in rows] == [1.0] * 3
    assert [row["lr"] for row in rows] == [pytest.approx(1e-2 * (1 - step / 10) ** 0.9) for step in (3, 7, 9)]
    assert calm.epochs == 3
    where = "saved up to epoch 2 and 1 steps"  # in the first of the last epoch's two
    assert stop_and_resume(config, tmp_path / "stopped", 9, match=where).metrics == calm.metrics
    assert [c.step for c in list_checkpoints(tmp_path / "stopped" / "checkpoints")][-1] == 10
    require_same_bits(tmp_path / "calm", tmp_path / "stopped")


def test_a_budget_may_be_less_than_an_epoch(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(train__budget_steps=3), tmp_path)
    assert [(row["epoch"], row["step"]) for row in read_metrics(tmp_path)] == [(1, 3)]


def test_a_budget_of_whole_epochs_is_that_many_epochs(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(train__budget_steps=8, optim__schedule="cosine"), tmp_path / "steps")
    train(tiny(train__epochs=2, optim__schedule="cosine"), tmp_path / "epochs")
    assert without_clock(tmp_path / "steps") == without_clock(tmp_path / "epochs")


def test_a_budget_of_minutes_is_settled_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many steps it has is measured in the first epoch, and a later attempt takes them as they are."""
    config = tiny(train__budget_min=1000.0, train__log_every=1, optim__schedule="one_cycle")
    totals = []
    for stop in (2, 6, 1):  # in the first epoch, in the third, and at once
        with monkeypatch.context() as patch:
            stop_when(patch, stop)
            with pytest.raises(Interrupted):
                train(config, tmp_path)
        totals.append(list_checkpoints(tmp_path / "checkpoints")[-1].state["total_steps"])
    assert totals[1] == totals[2] > 1000
    assert totals[0] > 1000
    for row in read_metrics(tmp_path)[1:]:
        assert row["lr"] == learning_rate(config.optim, int(row["step"]) - 1, totals[2])


def test_a_budget_of_minutes_ends_the_run(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny(train__budget_min=0.03, optim__schedule="cosine", train__ema_decay=0.9), tmp_path)
    rows, state = read_metrics(tmp_path), list_checkpoints(tmp_path / "checkpoints")[-1].state
    assert rows[-1]["step"] == state["total_steps"]
    assert result.epochs == len(rows) == -(-state["total_steps"] // 4)
    assert {row["data/coverage"] for row in rows} == {1.0}


def test_a_budget_that_is_less_than_the_first_steps_ends_with_them(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(train__budget_min=1e-9, train__log_every=3), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == [3]
    with pytest.raises(ValueError, match=r"train.budget_min = 1.0: leave it out, or train.budget_steps"):
        tiny(train__budget_min=1.0, train__budget_steps=5)
