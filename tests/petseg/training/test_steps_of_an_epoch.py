"""The steps of an epoch, and what happens at every third of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run.progress import PartialEpoch, Progress
from petseg.run.run import Run
from petseg.training import epoch as module
from petseg.training.epoch import StepStats, Stop, train_epoch


def looked(step: int, seen: int) -> list[tuple[Any, ...]]:
    """What follows a step (from 1) of the epoch at which the ranks share their numbers, the last but for the save."""
    events: list[tuple[Any, ...]] = [("share",), ("arm",), ("sound", step - 1)]
    if seen == 1:
        events.append(("fit", step, 2.0))
    return [*events, ("beat", seen, step, 4.0)]


@pytest.mark.parametrize(("epoch", "done", "is_main"), [(1, 0, True), (2, 2, True), (2, 0, False)])
def test_every_third_step_and_the_last_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, epoch: int, done: int, is_main: bool
) -> None:
    events: list[tuple[Any, ...]] = []

    def note(*event: Any) -> Any:
        return lambda *_: events.append(event)

    tally = SimpleNamespace(ledger="ledger", sums="sums", take_step=lambda batches: [f"batch of {batches}"])
    stats = StepStats(8.0, 4.0, 6.0, 5.0, 0.0, Stop.SAVE, save_due=False, seconds=2.0)
    beat = SimpleNamespace(beat=lambda *what: events.append(("beat", *what)))
    monkeypatch.setattr(module, "start_tally", lambda _: tally)
    monkeypatch.setattr(module, "HeartbeatWriter", lambda *_: beat)
    monkeypatch.setattr(module, "train_batches", lambda _, *start: start)
    monkeypatch.setattr(module, "run_step", lambda _, *what: events.append(("step", *what)))
    monkeypatch.setattr(module, "share_stats", lambda run, tally: events.append(("share",)) or stats)
    monkeypatch.setattr(module, "require_sound", lambda parts, epoch, step, *_: events.append(("sound", step)))
    monkeypatch.setattr(module, "fit_budget", lambda _, progress, *what: events.append(("fit", *what)))
    monkeypatch.setattr(module, "save_or_stop", lambda _, done, *rest: events.append(("save", done)))
    monkeypatch.setattr(module, "epoch_row", lambda *_: {"train/loss": 0.5})
    parts = SimpleNamespace(
        config=with_values(RunConfig(), {"train.log_every": 3, "train.batch_size": 8}), folder=Path("run"),
        is_main=is_main, splits={"train": range(36)}, model=SimpleNamespace(train=note("train")),
    )  # fmt: skip
    progress = Progress(5, 13, epoch=epoch - 1, partial=PartialEpoch(steps=done))
    pace = SimpleNamespace(reset=note("reset"), resume=note("resume"), stop=note("stop"))
    launches = SimpleNamespace(step=contextlib.nullcontext, arm=note("arm"))
    energy = SimpleNamespace(start=note("energy"))
    run = SimpleNamespace(parts=parts, progress=progress, pace=pace, launches=launches, energy=energy)
    bar: Any = SimpleNamespace(update=lambda *what: events.append(("bar", *what)))
    assert train_epoch(cast(Run, run), epoch, bar) == ({"train/loss": 0.5}, Stop.SAVE)
    expected: list[tuple[Any, ...]] = [("train",), ("reset",), ("energy",)]
    for step in range(done, 5):
        batches = [f"batch of {(epoch, done)}"]
        expected += [("resume",), ("step", epoch, step, batches, "sums"), ("stop",)]
        if step + 1 in (3, 5):
            expected += [event for event in looked(step + 1, epoch) if is_main or event[0] != "beat"]
            expected += [("save", 3)] if step + 1 == 3 else []
            expected.append(("bar", 5 * (epoch - 1) + step + 1, 13, 0.5, 4.0))
    assert events == expected
    assert progress.partial == PartialEpoch()
