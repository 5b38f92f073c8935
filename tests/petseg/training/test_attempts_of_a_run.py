"""From the start of an attempt to its end, with stand-ins for its parts: what is loaded, noted, reported and closed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from petseg.config import RunConfig
from petseg.config.values import config_to_dict, with_values
from petseg.run.progress import Best, PartialEpoch, Progress
from petseg.run.run import Run
from petseg.run_folder.layout import PRUNED_NAME, Pruned, Result
from petseg.tracking.naming import RunName
from petseg.training import loop, pruning, resume
from petseg.training.loop import Terms, pictures_of_best, settle_budget, start_attempt, train
from petseg.training.pruning import EarlyStop, Hyperband, StoppedEarly, pass_rung
from shards.command import Interrupted

RESULT = Result("0123456789", {"val/dice": 0.5}, 1, 2, 31, 1, "n", "cpu", 60.0, 83.0, 0.01, 84.0)
PRUNED = Pruned("0123456789", 3, 9, 2, 0.5, 0.5, 0.625, 4, "node1", 60.0)
EARLY = EarlyStop(Hyperband(min_iter=2), list)
CONFIG = with_values(RunConfig(), {"train.batch_size": 8})


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens to a run whose folder is new."""
    found: list[Any] = []

    class Tracker:
        def __init__(self, *what: Any) -> None:
            found.append(("tracker", *what))

        def finish(self, *what: Any) -> None:
            found.append(("finish", *what))

    store = SimpleNamespace(manifest=SimpleNamespace(hash="hash"), close=lambda: found.append("store closed"))
    monkeypatch.setattr(loop, "open_store", lambda *what: store)
    monkeypatch.setattr(loop, "claim_folder", lambda config, hash_, folder: found.append(("claim", hash_, folder)))
    monkeypatch.setattr(loop, "load_result", lambda _: None)
    monkeypatch.setattr(loop, "load_pruned", lambda _: None)
    monkeypatch.setattr(loop, "build_run", lambda config, folder, store, terms: run_of(found, folder))
    monkeypatch.setattr(loop, "Tracker", Tracker)
    monkeypatch.setattr(loop, "name_of_run", lambda folder, config: RunName("by itself"))
    monkeypatch.setattr(loop, "train_epochs", lambda run, tracker, early: found.append(("epochs", early)))
    monkeypatch.setattr(loop, "finish", lambda run, tracker: RESULT)
    return found


def run_of(events: list[Any], folder: Path, is_main: bool = True) -> Run:
    parts = SimpleNamespace(is_main=is_main, config=CONFIG, folder=folder, close=lambda: events.append("parts closed"))
    return cast(Run, SimpleNamespace(parts=parts, progress=Progress(5, 13, epoch=1)))


def test_a_run_is_tracked_from_where_it_goes_on_and_closed_at_its_end(events: list[Any], tmp_path: Path) -> None:
    for terms, name in ((None, "by itself"), (Terms(RunName("handed in"), early=EARLY), "handed in")):
        events.clear()
        assert train(CONFIG, tmp_path, terms) == RESULT
        tracked = ("tracker", tmp_path, CONFIG.tracking, RunName(name), config_to_dict(CONFIG), 1)
        assert events == [
            ("claim", "hash", tmp_path), tracked,
            ("epochs", terms and terms.early), "parts closed",
        ]  # fmt: skip


def test_a_finished_run_is_not_begun_again(
    events: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(loop, "load_result", lambda _: RESULT)
    assert train(CONFIG, tmp_path) == RESULT
    assert events == [("claim", "hash", tmp_path), "store closed"]
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path} is finished"]


def test_a_run_that_was_stopped_early_stays_so_unless_nobody_asks(
    events: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_pruned", lambda _: PRUNED)
    with pytest.raises(StoppedEarly, match=r"^stopped early after epoch 3 of 9, best val Dice 0\.5000$") as error:
        train(CONFIG, tmp_path, Terms(early=EARLY))
    assert error.value.pruned == PRUNED
    assert events == [("claim", "hash", tmp_path), "store closed"]
    assert train(CONFIG, tmp_path) == RESULT


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (Interrupted("saved"), [("finish", {}, "interrupted")]),
        (KeyboardInterrupt(), [("finish", {}, "failed")]),
        (ValueError("odd"), [("finish", {}, "failed")]),
        (StoppedEarly(PRUNED), []),  # which has been reported as such
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("is_main", [True, False])
def test_however_a_run_ends_that_is_reported_and_its_parts_are_closed(
    events: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, ended: list[Any],
    is_main: bool,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop, "train_epochs", fail)
    monkeypatch.setattr(loop, "build_run", lambda *_: run_of(events, tmp_path, is_main))
    with pytest.raises(type(error)):
        train(CONFIG, tmp_path)
    assert [event for event in events if event[0] not in ("claim", "tracker")] == (ended if is_main else []) + [
        "parts closed"
    ]


@pytest.mark.parametrize(
    ("resumed", "init", "loaded"),
    [
        (True, "", []),
        (False, "", [("pretrained", "bare"), ("averages", "weights")]),
        (False, "w.safetensors", ["initial", ("averages", "weights")]),
    ],
)
@pytest.mark.parametrize("is_main", [True, False])
def test_an_attempt_begins_with_a_checkpoint_or_the_weights_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool, init: str, loaded: list[Any], is_main: bool
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(loop, "resume", lambda _: resumed)
    monkeypatch.setattr(loop, "load_initial", lambda _: done.append("initial"))
    monkeypatch.setattr(loop, "load_pretrained", lambda config, model: done.append(("pretrained", model.name)))
    monkeypatch.setattr(loop, "begin_attempt", lambda *what: what)
    (tmp_path / PRUNED_NAME).touch()
    parts = SimpleNamespace(
        config=with_values(CONFIG, {"model.init": init}), is_main=is_main, folder=tmp_path, world_size=2,
        bare_model=SimpleNamespace(name="bare", state_dict=lambda: "weights"),
        ema=SimpleNamespace(load=lambda weights: done.append(("averages", weights))),
    )  # fmt: skip
    run: Any = SimpleNamespace(parts=parts, progress=Progress(5, 13, epoch=1), attempt=SimpleNamespace(noted=None))
    start_attempt(run, max_without_progress=4)
    assert done == loaded
    assert run.attempt.noted == ((tmp_path, 5, 4, 2) if is_main else None)
    assert (tmp_path / PRUNED_NAME).exists() is not is_main


@pytest.mark.parametrize(("dice", "wanted", "shown"), [(0.6, True, True), (0.5, True, False), (0.6, False, False)])
def test_pictures_are_of_epochs_that_are_better_and_due(
    monkeypatch: pytest.MonkeyPatch, dice: float, wanted: bool, shown: bool
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(loop, "predict", lambda parts, *what: asked.append(what) or ["picture"])
    config = with_values(CONFIG, {"tracking.overlays": 2})
    parts = SimpleNamespace(config=config, ema=None, splits={"val": range(10)})
    run: Any = SimpleNamespace(parts=parts, progress=Progress(5, 13, best=Best(5, 1, 0.5)))
    tracker: Any = SimpleNamespace(wants_pictures=lambda epoch: epoch == 4 and wanted)
    assert pictures_of_best(run, {"epoch": 4.0, "val/dice": dice}, tracker) == (["picture"] if shown else [])
    assert asked == ([("val", [0, 5])] if shown else [])


@pytest.mark.parametrize(("minutes", "total_steps"), [(0.0, 13), (1.0, 50)])
def test_a_budget_of_minutes_is_settled_by_the_main_processs_clock(
    monkeypatch: pytest.MonkeyPatch, minutes: float, total_steps: int
) -> None:
    """There an epoch of 5 steps took 5 s, and its validation 1 s."""
    monkeypatch.setattr(loop, "broadcast_object_list", lambda own: [5.0, 1.0])
    parts = SimpleNamespace(config=with_values(CONFIG, {"train.budget_min": minutes}))
    run: Any = SimpleNamespace(parts=parts, progress=Progress(5, 13))
    settle_budget(run, 99.0, 99.0)
    assert run.progress.total_steps == total_steps


def rung(events: list[Any], progress: Progress, is_main: bool = True) -> Run:
    accelerator = SimpleNamespace(wait_for_everyone=lambda: events.append("wait"))
    attempt = SimpleNamespace(require_newest=lambda: events.append("newest"))
    parts = SimpleNamespace(folder=Path("run"), is_main=is_main, accelerator=accelerator)
    return cast(Run, SimpleNamespace(parts=parts, progress=progress, attempt=attempt))


@pytest.mark.parametrize("is_main", [True, False])
def test_all_ranks_stop_at_a_rung_and_the_main_one_reports_it(monkeypatch: pytest.MonkeyPatch, is_main: bool) -> None:
    events: list[Any] = []
    sent: list[Any] = []
    tracker: Any = SimpleNamespace(finish=lambda *what: events.append(("finish", *what))) if is_main else None
    monkeypatch.setattr(pruning, "decide", lambda *what: PRUNED)
    monkeypatch.setattr(pruning, "save_pruned", lambda *what: events.append(("save", *what)))
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda own: sent.append(own) or [PRUNED])
    with pytest.raises(StoppedEarly) as error:
        pass_rung(rung(events, Progress(5, 45, epoch=2), is_main), EARLY, tracker)
    assert error.value.pruned == PRUNED
    assert sent == [[PRUNED if is_main else None]]
    summary = {"pruned_epoch": 3, "best_epoch": 2, "val/dice": 0.5}
    reported = ["newest", ("save", PRUNED, Path("run")), ("finish", summary, "pruned")]
    assert events == [*(reported if is_main else []), "wait"]


@pytest.mark.parametrize(
    "progress",
    [Progress(5, 45, epoch=3), Progress(5, 45, epoch=2, partial=PartialEpoch(steps=1)), Progress(5, 10, epoch=2)],
    ids=["no rung", "passed before", "the end"],
)
def test_nothing_is_decided_elsewhere(monkeypatch: pytest.MonkeyPatch, progress: Progress) -> None:
    monkeypatch.setattr(pruning, "decide", lambda *what: pytest.fail("there is no rung"))
    pass_rung(rung([], progress), EARLY, None)


def test_a_run_that_passes_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(pruning, "decide", lambda *what: None)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda own: own)
    pass_rung(rung(events, Progress(5, 45, epoch=2)), EARLY, None)
    assert events == []


@pytest.mark.parametrize("is_main", [True, False])
@pytest.mark.parametrize("found", [5, None])
def test_all_ranks_take_the_checkpoint_that_the_main_one_chose(
    monkeypatch: pytest.MonkeyPatch, is_main: bool, found: int | None
) -> None:
    """Which alone sets damaged ones aside."""
    asked: list[Any] = []
    kept = [SimpleNamespace(step=step) for step in (5, 10)]

    def newest(folder: Path, set_aside: bool) -> Any:
        asked.append((folder, set_aside))
        return next((one for one in kept if one.step == found), None)

    broadcast: Callable[[list[Any]], list[Any]] = lambda own: [found]  # noqa: E731
    monkeypatch.setattr(resume, "newest_loadable", newest)
    monkeypatch.setattr(resume, "list_checkpoints", lambda _: kept)
    monkeypatch.setattr(resume, "broadcast_object_list", broadcast)
    parts: Any = SimpleNamespace(folder=Path("run"), is_main=is_main)
    assert resume.newest_of_all(parts) is (kept[0] if found else None)
    assert asked == ([(Path("run/checkpoints"), True)] if is_main else [])
