"""When an attempt saves next, and what a run starts with."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run import run as module
from petseg.run.parts import Parts
from petseg.run.progress import Progress
from petseg.run.run import CurrentAttempt, new_run
from petseg.run_folder.attempts import begin_attempt
from shards.command import Interrupted


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


def test_only_an_attempt_that_is_noted_may_not_write_after_another(tmp_path: Path) -> None:
    first = CurrentAttempt(tmp_path, 10.0, begin_attempt(tmp_path, 0))
    first.require_newest()
    begin_attempt(tmp_path, 0)
    with pytest.raises(Interrupted, match="goes on in another process"):
        first.require_newest()
    CurrentAttempt(tmp_path, 10.0).require_newest()  # of a process that writes nothing


def parts_of(folder: Path, world_size: int = 1, device: str = "cpu", **values: Any) -> Parts:
    train = SimpleNamespace(num_samples=21)
    values = {"train.batch_size": 8, "train.epochs": 4, "train.save_every_min": 3.0} | values
    parts = SimpleNamespace(
        config=with_values(RunConfig(), values), folder=folder, manifest=SimpleNamespace(splits={"train": train}),
        bare_model=nn.Linear(1, 1), compiled=None, device=torch.device(device), world_size=world_size,
        accelerator="accelerator",
    )  # fmt: skip
    return cast(Parts, parts)


def test_a_run_starts_with_all_its_steps_to_do(tmp_path: Path) -> None:
    teacher = nn.Identity()
    run = new_run(parts_of(tmp_path), teacher)
    assert run.progress == Progress(steps_per_epoch=3, total_steps=12)
    assert (run.attempt.folder, run.attempt.save_every_min, run.attempt.noted) == (tmp_path, 3.0, None)
    assert run.teacher is teacher
    assert (run.choice, run.exchange) == (None, None)
    assert math.isnan(run.energy.joules())
    assert not run.launches.enabled


@pytest.mark.parametrize(("world_size", "device", "enabled"), [(1, "cpu", False), (2, "cpu", True), (2, "meta", False)])
def test_the_pace_of_ranks_is_measured_where_there_are_several_on_cpus(
    tmp_path: Path, world_size: int, device: str, enabled: bool
) -> None:
    assert new_run(parts_of(tmp_path, world_size, device)).pace.enabled is enabled


@pytest.mark.parametrize("compile_", ["auto", "always"])
def test_whether_steps_run_compiled_is_chosen_with_the_runs_own_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compile_: str
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(module, "CompileChoice", lambda *what: given.extend(what) or "choice")
    parts = parts_of(tmp_path, **{"train.compile": compile_})
    compiled = SimpleNamespace(shapes={(2, 3, 64, 64), (1, 3, 64, 64)})
    object.__setattr__(parts, "compiled", compiled)
    run = new_run(parts)
    assert run.choice == "choice"
    assert given[0] is compiled
    assert given[2:] == [run.graphs, "accelerator", run.progress, compile_ == "always"]
