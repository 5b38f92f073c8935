"""How a rank begins an epoch that was interrupted, what it tells, and what an error says of its batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from petseg.config import RunConfig
from petseg.config.training import TrainConfig
from petseg.data.ledger import Count
from petseg.run.progress import PartialEpoch
from petseg.run.run import Run
from petseg.run_folder.heartbeat import HeartbeatWriter
from petseg.training import epoch as epoch_module
from petseg.training.epoch import energy_row, not_finite, start_tally
from petseg.training.loop import train
from petseg.training.progress_bar import TrainProgress

BEFORE = PartialEpoch(3, ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)), Count(24, 99), seconds=10.0, waited_s=2.5)


def run_of(**parts: Any) -> Run:
    fields = {"rank": 0, "world_size": 2, "is_main": True, "device": torch.device("cpu")} | parts
    return cast(Run, SimpleNamespace(parts=SimpleNamespace(**fields), progress=SimpleNamespace(partial=BEFORE)))


def test_a_rank_goes_on_with_its_own_sums_and_the_main_one_with_what_all_have_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the ledger, which is summed over the ranks, would count what was done before once for each."""
    monkeypatch.setattr(epoch_module.time, "perf_counter", lambda: 100.0)
    main, other = start_tally(run_of()), start_tally(run_of(rank=1, is_main=False))
    assert main.sums.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert other.sums.tolist() == [5.0, 6.0, 7.0, 8.0]
    assert main.sums.dtype == torch.float64
    assert (main.ledger.count, other.ledger.count) == (BEFORE.count, Count())
    assert (main.start, main.waited_s) == (other.start, other.waited_s) == (90.0, 2.5)


@pytest.mark.parametrize(
    ("joules", "row"), [(250.0, {"perf/energy_j": 250.0}), (0.0, {"perf/energy_j": 0.0}), (float("nan"), {})]
)
def test_energy_is_a_row_where_it_is_known(joules: float, row: dict[str, float]) -> None:
    parts = SimpleNamespace(device=torch.device("cpu"), accelerator=SimpleNamespace(reduce=lambda tensor: tensor))
    run = SimpleNamespace(energy=SimpleNamespace(joules=lambda: joules), parts=parts)
    assert energy_row(cast(Run, run)) == row


@pytest.mark.parametrize(
    ("step", "late_batches", "first"),
    [(4, 1, 4), (5, 1, 4), (7, 1, 4), (0, 1, 0), (3, 1, 0), (5, 3, 2), (3, 3, 0)],
)
def test_a_loss_that_is_not_finite_names_the_batches_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, late_batches: int, first: int
) -> None:
    """Losses are looked at every 4 steps, and an update of several batches may have begun before."""
    monkeypatch.setattr(epoch_module, "epoch_order", lambda *_: None)
    monkeypatch.setattr(epoch_module, "global_batch", lambda _, size, number: range(number * size, (number + 1) * size))
    train = TrainConfig(log_every=4, batch_size=2, late_batches=late_batches)
    parts: Any = SimpleNamespace(
        config=SimpleNamespace(train=train), folder=tmp_path, is_main=True,
        splits={"train": SimpleNamespace(key=lambda number: f"key-{number}")},
    )  # fmt: skip
    error = not_finite(parts, 9, step)
    assert f"in steps {first}-{step} of epoch 9" in str(error)
    written = json.loads((tmp_path / "not_finite.json").read_text())
    keys = {str(number): [f"key-{2 * number}", f"key-{2 * number + 1}"] for number in range(first, step + 1)}
    assert written == {"epoch": 9, "keys_by_step": keys}


def test_the_bar_counts_the_steps_of_the_run_and_the_heartbeat_those_of_the_epoch(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """27 pictures in batches of 8 are 4 steps an epoch; every second one is looked at."""
    shown: list[tuple[int, int]] = []
    beaten: list[tuple[int, int]] = []
    monkeypatch.setattr(TrainProgress, "update", lambda self, step, total, *_: shown.append((step, total)))
    monkeypatch.setattr(HeartbeatWriter, "beat", lambda self, epoch, done, _: beaten.append((epoch, done)))
    train(tiny(train__epochs=2, train__batch_size=8, train__log_every=2), tmp_path / "run")
    assert shown == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert beaten == [(1, 2), (1, 4), (2, 2), (2, 4)]
