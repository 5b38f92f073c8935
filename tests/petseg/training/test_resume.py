"""What a run takes from its newest checkpoint, and the order in which an epoch is validated, logged and saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from petseg.config import RunConfig
from petseg.run.progress import Best, PartialEpoch, Progress
from petseg.run.run import Run
from petseg.run_folder.checkpoint import Checkpoint
from petseg.training import loop, resume
from petseg.training.epoch import Stop
from shards.command import Failure, Interrupted

SAVED = Progress(5, 13, epoch=1, partial=PartialEpoch(steps=2), best=Best(5, 1, 0.5))


def run_of(rank: int = 0, world_size: int = 2, scaler: Any = None) -> Run:
    buffers = [torch.zeros(2), torch.zeros(1)]
    parts = SimpleNamespace(
        config=RunConfig(), folder=Path("run"), rank=rank, world_size=world_size, is_main=rank == 0, learner="learner",
        device=torch.device("cpu"), float_buffers=lambda: buffers,
        accelerator=SimpleNamespace(scaler=scaler, gather=lambda own: own, wait_for_everyone=lambda: None),
    )  # fmt: skip
    attempt = SimpleNamespace(require_newest=lambda: None, saved_at=0.0)
    return cast(Run, SimpleNamespace(parts=parts, progress=Progress(5, 13), attempt=attempt))


def offer(monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], buffers: torch.Tensor | None = None) -> list[Any]:
    """A newest checkpoint with this state; returns what is loaded."""
    loaded: list[Any] = []
    newest = Checkpoint(Path("run/checkpoints/step-00000007"), 7, state)
    monkeypatch.setattr(resume, "newest_of_all", lambda _: newest)
    monkeypatch.setattr(resume, "load_checkpoint", lambda *what: loaded.extend(what))
    monkeypatch.setattr(resume, "load_rank_buffers", lambda _: buffers)
    return loaded


@pytest.mark.parametrize(
    ("rank", "world_size", "expected"), [(0, 2, [1.0, 2.0, 3.0]), (1, 2, [5.0, 6.0, 9.0]), (2, 3, [3.0, 4.0, 6.0])]
)
def test_a_rank_goes_on_with_its_own_statistics_or_the_mean_of_another_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int, expected: list[float]
) -> None:
    loaded = offer(monkeypatch, SAVED.to_state(), torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 9.0]]))
    run = run_of(rank, world_size)
    assert resume.resume(run)
    assert [checkpoint if isinstance(checkpoint, str) else checkpoint.step for checkpoint in loaded] == [7, "learner"]
    assert nn.utils.parameters_to_vector(run.parts.float_buffers()).tolist() == expected
    assert run.progress == SAVED


def test_statistics_that_are_the_models_and_a_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled: list[Any] = []
    offer(monkeypatch, SAVED.to_state() | {"scaler": {"scale": 2.0}})
    run = run_of(scaler=SimpleNamespace(load_state_dict=scaled.append))
    assert resume.resume(run)
    assert scaled == [{"scale": 2.0}]
    assert nn.utils.parameters_to_vector(run.parts.float_buffers()).tolist() == [0.0] * 3


@pytest.mark.parametrize("count", [2, 4])
def test_statistics_of_another_model_were_altered(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    offer(monkeypatch, SAVED.to_state(), torch.ones(2, count))
    with pytest.raises(Failure, match=rf"buffers\.safetensors was altered .*\({count} numbers of each rank, not 3\)"):
        resume.resume(run_of())


def test_a_run_without_a_checkpoint_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "newest_of_all", lambda _: None)
    run = run_of()
    assert not resume.resume(run)
    assert run.progress == Progress(5, 13)


@pytest.mark.parametrize("name", ["epoch", "so_far", "best"])
def test_a_state_that_lacks_a_field_was_altered(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    offer(monkeypatch, {key: value for key, value in SAVED.to_state().items() if key != name})
    with pytest.raises(Failure, match=rf"step-00000007/state.json was altered .*{name}"):
        resume.resume(run_of())


@pytest.mark.parametrize(("rank", "scaler"), [(0, None), (0, {"scale": 2.0}), (1, None)])
def test_the_main_process_saves_the_progress_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch, rank: int, scaler: dict[str, float] | None
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(resume, "save_checkpoint", lambda *what: saved.append(what))
    monkeypatch.setattr("petseg.training.resume.time.monotonic", lambda: 42.0)
    run = run_of(rank, scaler=scaler and SimpleNamespace(state_dict=lambda: scaler))
    run.progress.epoch = 1
    resume.save_within(run, PartialEpoch(steps=2))
    assert run.attempt.saved_at == 42.0
    if rank:
        assert saved == []
        return
    ((folder, step, learner, state, buffers),) = saved
    assert (folder, step, learner, buffers.tolist()) == (Path("run/checkpoints"), 7, "learner", [[0.0] * 3])
    assert state == run.progress.to_state() | {"scaler": scaler}
    assert state["so_far"]["steps"] == 2


def test_an_epoch_is_saved_with_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(resume, "save_checkpoint", lambda *what: saved.append(what))
    run = run_of()
    resume.save_epoch(run, {"epoch": 2, "step": 10, "val/dice": 0.75})
    ((_, step, _, state, buffers),) = saved
    assert (step, state["epoch"], buffers) == (10, 2, None)
    assert state["best"] == {"step": 10, "epoch": 2, "val/dice": 0.75}


class Bar:
    def __init__(self, *given: Any) -> None:
        self.given = given

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def epoch_done(self, row: dict[str, float]) -> None: ...


@pytest.mark.parametrize(("stop_after", "epochs"), [(0, [2, 3]), (2, [2]), (3, [2, 3])])
def test_each_epoch_is_validated_logged_and_then_saved(
    monkeypatch: pytest.MonkeyPatch, stop_after: int, epochs: list[int]
) -> None:
    """From the second of three epochs on; a signal near the end of the last one comes too late to stop anything."""
    done: list[Any] = []

    def train_epoch(run: Run, epoch: int, bar: Bar) -> tuple[dict[str, float], Stop]:
        assert bar.given == (13, 5, 5, True)
        return {"train/loss": 0.5, "perf/seconds": 1.0}, Stop.SAVE if epoch == stop_after else Stop.NO

    def save_epoch(run: Run, row: dict[str, float]) -> None:
        done.append(("save", row["epoch"], row["step"]))
        run.progress.epoch = int(row["epoch"])

    monkeypatch.setattr(loop, "TrainProgress", Bar)
    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    monkeypatch.setattr(loop, "validate", lambda _: {"val/dice": 0.5, "perf/validation_s": 1.0})
    monkeypatch.setattr(loop, "save_epoch", save_epoch)
    monkeypatch.setattr(loop, "pictures_of_best", lambda *_: ["pictures"])
    run = run_of()
    run.progress.epoch = 1
    run.attempt.require_newest = lambda: done.append("newest")  # type: ignore[method-assign]
    tracker: Any = SimpleNamespace(log=lambda row, pictures: done.append(("log", row, pictures)))
    if stop_after == 2:
        with pytest.raises(Interrupted, match="is saved up to epoch 2"):
            loop.train_epochs(run, tracker, None)
    else:
        loop.train_epochs(run, tracker, None)
    row = {"train/loss": 0.5, "perf/seconds": 1.0, "val/dice": 0.5, "perf/validation_s": 1.0}
    step = {2: 10, 3: 13}
    assert done == [
        event
        for epoch in epochs
        for event in (
            "newest",
            ("log", {"epoch": epoch, "step": step[epoch], **row}, ["pictures"]),
            ("save", epoch, step[epoch]),
        )
    ]
