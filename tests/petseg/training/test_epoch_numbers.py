"""What the ranks tell each other of an epoch, and what follows: errors, saves, stops and the epoch's row."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.ledger import Count, Ledger
from petseg.data.tars import Lost
from petseg.run.pace import RankTime
from petseg.run.progress import PartialEpoch, Progress
from petseg.run.run import Run
from petseg.training import epoch as epoch_module
from petseg.training import interrupt
from petseg.training.epoch import (
    RankTally,
    StepStats,
    Stop,
    epoch_row,
    interrupted,
    launch_row,
    pace_row,
    require_sound,
    samples_of,
    save_or_stop,
    share_stats,
)
from shards.cause import Cause
from shards.command import Failure, Interrupted
from shards.manifest import split_of_keys

KEYS = [f"key-{number}" for number in range(36)]
CONFIG = with_values(RunConfig(), {"train.batch_size": 8, "data.max_lost_samples": 2})
CPU = torch.device("cpu")
TOGETHER = SimpleNamespace(device=CPU, reduce=lambda own: own, gather=lambda own: own)  # as of one rank


def run_of(folder: Path = Path("run"), is_main: bool = True, **fields: Any) -> Run:
    parts = SimpleNamespace(
        config=CONFIG, folder=folder, is_main=is_main, accelerator=TOGETHER, device=CPU, world_size=1,
        manifest=SimpleNamespace(splits={"train": split_of_keys(KEYS)}),
        splits={"train": SimpleNamespace(key=lambda number: KEYS[number])},
    )  # fmt: skip
    return cast(Run, SimpleNamespace(**{"parts": parts, "progress": Progress(5, 13)} | fields))


def tally_of(lost: int = 0, count: Count = Count()) -> RankTally:  # noqa: B008
    gone = [Lost("train-000000.tar", f"key-{number}", 512, "altered") for number in range(lost)]
    ledger = Ledger(Count(lost=lost) if lost else count, gone)
    return RankTally(torch.tensor([8.0, 4.0, 6.0, 5.0], dtype=torch.float64), ledger, start=90.0, waited_s=2.5)


def stats_of(**changes: Any) -> StepStats:
    values = {"samples": 8.0, "loss": 4.0, "dice": 6.0, "iou": 5.0, "lost": 0.0, "stop": Stop.NO, "save_due": False}
    return StepStats(**{**values, "seconds": 2.0, **changes})


@pytest.mark.parametrize(
    ("requested", "requeue", "stop"),
    [(False, False, Stop.NO), (True, False, Stop.SAVE), (True, True, Stop.REQUEUE)],
)
@pytest.mark.parametrize(("is_main", "save_due"), [(True, True), (True, False), (False, True)])
def test_ranks_share_their_numbers_and_the_main_ones_clock(
    monkeypatch: pytest.MonkeyPatch, requested: bool, requeue: bool, stop: Stop, is_main: bool, save_due: bool
) -> None:
    monkeypatch.setattr(epoch_module.time, "perf_counter", lambda: 94.0)
    monkeypatch.setattr(interrupt, "requested", lambda: requested)
    monkeypatch.setattr(interrupt, "requeue_requested", lambda: requeue)
    tally = tally_of(lost=3)
    stats = share_stats(run_of(is_main=is_main, attempt=SimpleNamespace(save_due=save_due)), tally)
    assert stats == StepStats(
        8.0, 4.0, 6.0, 5.0, lost=3.0, stop=stop, save_due=is_main and save_due, seconds=4.0 * is_main
    )
    assert tally.seconds == 4.0


def test_speed_is_samples_by_seconds() -> None:
    assert stats_of(samples=8.0, seconds=2.0).images_per_s == 4.0


def test_more_lost_samples_than_allowed_and_a_loss_that_is_no_number_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts, ledger = run_of().parts, tally_of(lost=3).ledger
    monkeypatch.setattr(epoch_module, "gather_object", lambda own: own)
    monkeypatch.setattr("petseg.data.ledger.gather_object", lambda own: own)
    monkeypatch.setattr(epoch_module, "not_finite", lambda _, *where: Failure(f"not finite {where}", Cause.NAN))
    require_sound(parts, 2, 4, stats_of(lost=2.0), ledger)
    with pytest.raises(Failure, match=r"samples of split train are unreadable \(data.max_lost_samples allows 2\)"):
        require_sound(parts, 2, 4, stats_of(lost=3.0), ledger)
    for loss in (math.nan, math.inf):
        with pytest.raises(Failure, match=r"not finite \(2, 4\)"):
            require_sound(parts, 2, 4, stats_of(loss=loss), ledger)


@pytest.mark.parametrize(
    ("stop", "save_due", "saves"),
    [(Stop.NO, False, False), (Stop.NO, True, True), (Stop.SAVE, False, True), (Stop.REQUEUE, True, True)],
)
def test_a_run_is_saved_where_that_is_due_or_a_signal_came(
    monkeypatch: pytest.MonkeyPatch, stop: Stop, save_due: bool, saves: bool
) -> None:
    saved: list[PartialEpoch] = []
    monkeypatch.setattr(epoch_module, "save_within", lambda _, partial: saved.append(partial))
    run, count = run_of(), Count(8, 99)
    try:
        save_or_stop(run, 3, tally_of(count=count), stats_of(stop=stop, save_due=save_due))
        stopped = False
    except Interrupted:
        stopped = True
    assert stopped is bool(stop)
    expected = PartialEpoch(3, ((8.0, 4.0, 6.0, 5.0),), count, seconds=2.0, waited_s=2.5)
    assert saved == ([expected] if saves else [])


def test_each_ranks_sums_are_saved_with_the_longest_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[PartialEpoch] = []
    monkeypatch.setattr(epoch_module, "save_within", lambda _, partial: saved.append(partial))
    run, tally = run_of(), tally_of()
    other = torch.tensor([[7.0, 1.0, 2.0, 3.0, 9.0]], dtype=torch.float64)
    gather = lambda own: torch.cat([own, other if own.is_floating_point() else own * 0])  # noqa: E731
    run.parts.accelerator = cast(Any, SimpleNamespace(device=CPU, gather=gather))
    save_or_stop(run, 1, tally, stats_of(save_due=True))
    assert saved[0].sums == ((8.0, 4.0, 6.0, 5.0), (7.0, 1.0, 2.0, 3.0))
    assert saved[0].waited_s == 9.0


@pytest.mark.parametrize(
    ("stop", "steps", "said"), [(Stop.SAVE, 0, "up to epoch 2: run"), (Stop.REQUEUE, 3, "up to epoch 2 and 3 steps:")]
)
def test_an_interrupted_run_says_how_far_it_is_saved(stop: Stop, steps: int, said: str) -> None:
    progress = Progress(5, 13, epoch=2, partial=PartialEpoch(steps=steps))
    error = interrupted(run_of(progress=progress), stop)
    assert f"run is saved {said}" in str(error)
    assert error.requeue is (stop is Stop.REQUEUE)


def test_the_ledger_of_a_last_epoch_that_a_budget_cuts_is_of_its_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 steps of 8 samples are the first 24 of the epoch's order, which here runs backwards."""
    asked: list[int] = []

    def order(_: object, epoch: int) -> Any:
        asked.append(epoch)
        return SimpleNamespace(ids=lambda start, stop: list(range(35, -1, -1))[start:stop])

    monkeypatch.setattr(epoch_module, "epoch_order", order)
    assert samples_of(run_of(), 2) == split_of_keys(KEYS)
    assert asked == []
    assert samples_of(run_of(), 3) == split_of_keys(KEYS[12:])
    assert asked == [3]


def ranks_of(*ranks: RankTime) -> Any:
    table = torch.tensor([[rank.waited_s, rank.own_s, rank.seconds] for rank in ranks], dtype=torch.float64)
    return SimpleNamespace(gather=lambda own: torch.cat([own, table]))


@pytest.mark.parametrize(
    ("enabled", "own", "straggler", "warned"),
    [(True, 15.0, 1.5, True), (True, 11.0, 1.1, False), (False, 0.0, 2.0, True)],
)
def test_the_row_says_how_far_the_slowest_rank_is_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, enabled: bool, own: float, straggler: float,
    warned: bool,
) -> None:  # fmt: skip
    """Without clocks of their own, steps take the 10 of 20 s in which the slowest rank did not wait for data."""
    monkeypatch.setattr(epoch_module, "gather_object", lambda hosts: [*hosts, "b", "c"])
    run = run_of(pace=SimpleNamespace(enabled=enabled))
    run.parts.accelerator = ranks_of(RankTime(0.0, 10.0, 20.0), RankTime(0.0, 10.0, 20.0))
    row = pace_row(run, RankTime(10.0, own, 20.0), images_per_s=3.0)
    assert row == {"perf/data_wait": 0.5, "perf/headroom": 6.0, "perf/straggler": straggler}
    assert ("rank 0 on " in caplog.text) is warned
    caplog.clear()
    run.parts.is_main = False
    pace_row(run, RankTime(10.0, own, 20.0), images_per_s=3.0)
    assert not caplog.text


def test_a_single_rank_has_no_straggler() -> None:
    row = pace_row(run_of(pace=SimpleNamespace(enabled=True)), RankTime(5.0, 6.0, 20.0), images_per_s=3.0)
    assert row == {"perf/data_wait": 0.25, "perf/headroom": 4.0}


@pytest.mark.parametrize(
    ("enabled", "graphed", "launching", "names"),
    [
        (True, 0.5, 0.25, {"perf/graphed", "perf/launching"}),
        (True, 0.0, math.nan, {"perf/graphed"}),
        (True, math.nan, 0.25, {"perf/launching"}),
        (False, 0.5, 0.25, set()),
    ],
)
def test_shares_of_launches_are_a_row_where_they_are_known(
    enabled: bool, graphed: float, launching: float, names: set[str]
) -> None:
    launches = SimpleNamespace(enabled=enabled, take_share=lambda: launching)
    row = launch_row(run_of(graphs=SimpleNamespace(take_share=lambda: graphed), launches=launches))
    assert row == {name: {"perf/graphed": graphed, "perf/launching": launching}[name] for name in names}


def test_the_row_of_an_epoch_has_means_over_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    for name in ("energy_row", "launch_row"):
        monkeypatch.setattr(epoch_module, name, lambda _, name=name: {name: 1.0})
    monkeypatch.setattr(epoch_module, "mfu_row", lambda *args: given.update(mfu=args) or {"perf/mfu": 0.5})
    monkeypatch.setattr(epoch_module, "pace_row", lambda _, *args: given.update(pace=args) or {"perf/data_wait": 0.25})
    monkeypatch.setattr(epoch_module, "learning_rate_at", lambda *args: given.update(lr=args[2:]) or 0.125)
    monkeypatch.setattr(epoch_module, "relative_area_of", lambda *_: 0.5)
    whole = split_of_keys(KEYS)
    tally = tally_of(count=Count(35, int(whole.key_xor, 16), lost=1, unnamed=1))
    tally.seconds = 8.0
    run = run_of(pace=SimpleNamespace(own_s=6.0))
    row = epoch_row(run, 2, stats_of(seconds=4.0), tally)
    assert row == {
        "train/loss": 0.5, "train/dice": 0.75, "train/iou": 0.625, "lr": 0.125, "data/coverage": 35 / 36,
        "perf/seconds": 4.0, "perf/images_per_s": 2.0, "perf/data_wait": 0.25, "perf/mfu": 0.5, "energy_row": 1.0,
        "launch_row": 1.0,
    }  # fmt: skip
    assert given["lr"] == (2, 4)  # of the last step
    assert given["pace"] == (RankTime(2.5, 6.0, 8.0), 2.0)
    assert given["mfu"] == (CONFIG, 1.0, CPU, 1)
    with pytest.raises(Failure, match="the ledger of train does not balance"):
        epoch_row(run, 2, stats_of(), tally_of(count=Count(35)))
