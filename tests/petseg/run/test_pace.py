"""What each rank waited for and worked by itself, brought together once an epoch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from petseg.config import RunConfig
from petseg.run.pace import (
    LaunchMeter,
    RankTime,
    StepClock,
    data_wait,
    is_slow,
    launch_meter,
    straggler,
    straggler_in_words,
    with_common_steps,
)
from petseg.run_folder.layout import read_metrics
from petseg.training.loop import train

REPOSITORY = Path(__file__).parents[3]


def ranks(*own_s: float) -> list[RankTime]:
    return [RankTime(waited_s=own / 2, own_s=own, seconds=20.0) for own in own_s]


def test_the_data_wait_is_the_largest_of_all_ranks() -> None:
    assert data_wait([RankTime(1.0, 3.0, 10.0), RankTime(4.0, 6.0, 10.0), RankTime(2.0, 3.0, 10.0)]) == 0.4


@pytest.mark.parametrize(
    ("own_s", "rank", "ratio"),
    [
        ((4.0, 4.0, 4.0), 0, 1.0),
        ((4.0, 6.0), 1, 1.5),  # of two the other one, not the mean of both
        ((9.0, 4.0, 3.0, 6.0), 0, 2.25),  # of four the middle of the other three
        ((4.0, 4.0, 5.0), 2, 1.25),
        ((0.0, 0.0), 0, 1.0),
    ],
)
def test_the_straggler_is_compared_with_the_ranks_median(own_s: tuple[float, ...], rank: int, ratio: float) -> None:
    assert straggler(ranks(*own_s)) == (rank, ratio)


def test_steps_take_equally_long_if_only_data_waits_are_known() -> None:
    """On GPUs: 10 s in all, of which the slowest waited 6: 4 s of steps, and 1 s of waiting for the others."""
    times = [RankTime(1.0, 0.0, 10.0), RankTime(6.0, 0.0, 10.0), RankTime(1.0, 0.0, 10.0)]
    assert [time.own_s for time in with_common_steps(times)] == [5.0, 10.0, 5.0]
    assert straggler(with_common_steps(times)) == (1, 2.0)


def test_a_straggler_is_slow_from_a_fifth_and_a_second_on() -> None:
    assert not is_slow(ranks(10.0, 10.0, 11.9))
    assert not is_slow(ranks(0.1, 0.1, 0.9))  # of so short an epoch nothing can be said
    assert not is_slow(ranks(5.0, 6.0))  # a fifth, and no more
    assert is_slow(ranks(2.0, 3.0))  # a second
    assert is_slow(ranks(10.0, 10.0, 15.0))


def test_the_warning_names_the_rank_its_host_and_both_times() -> None:
    assert straggler_in_words(ranks(10.0, 10.0, 15.0), ["node1", "node2", "node3"]) == (
        "rank 2 on node3 took 15.0 s of its own in this epoch, 50 % more than the ranks' median of 10.0 s: the others "
        "wait for it in each step. If that persists, see what else runs there, or leave the host out with --exclude"
    )


def test_the_clock_is_stopped_until_the_model_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 5.0, 6.0, 9.0, 13.0])
    monkeypatch.setattr("petseg.run.pace.time.perf_counter", lambda: next(now))
    model, pace = nn.Linear(1, 1), StepClock()
    pace.reset()
    pace.resume()  # 0
    with pace.stopped_until(model):  # 2
        model(torch.zeros(1))  # 5
    with pace.stopped():  # 6, 9
        pass
    pace.stop()  # 13
    assert pace.own_s == 2.0 + 1.0 + 4.0
    assert not model._forward_pre_hooks


SLOW_RANK = """\
import sys, time
from petseg import train
from petseg.training import step
from shards.command import run_command

to_device = step.to_device

def slow(parts, batch):
    if parts.rank == {rank}:
        time.sleep(0.7)
    return to_device(parts, batch)

step.to_device = slow
sys.exit(run_command(train.main))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_slow_rank_is_named_with_its_host(pet_shards: Path, tmp_path: Path, rank: int) -> None:
    """Rank 0 too, for which the others wait at the start of each forward pass: what they wait is not theirs."""
    script = tmp_path / "slow_train.py"
    script.write_text(SLOW_RANK.format(rank=rank))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
    values = {
        "data.shards": pet_shards, "data.image-size-px": 64, "data.threads": 1, "data.cache-dir": tmp_path / "cache",
        "model.width": 4, "train.batch-size": 8, "train.epochs": 1, "tracking.overlays": 0, "out": tmp_path / "run",
        "world-size": 2,
    }  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *words, "--train.no-test"],
        cwd=REPOSITORY, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "of its own in this epoch" in line]
    assert len(warnings) == 1, done.stderr
    assert f"rank {rank} on {os.uname().nodename} took " in warnings[0]
    (row,) = read_metrics(tmp_path / "run")
    assert row["perf/straggler"] > 1.2
    assert row["data/coverage"] == 1.0


def test_only_the_time_between_a_resume_and_the_next_stop_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr("petseg.run.pace.time.perf_counter", lambda: next(now))
    pace = StepClock()
    pace.stop()  # it never ran
    pace.resume()  # 0
    pace.stop()  # 2
    pace.stop()  # it stands already
    pace.resume()  # 5
    pace.stop()  # 9
    assert pace.own_s == 6.0
    pace.reset()
    pace.stop()
    assert pace.own_s == 0.0


def test_a_disabled_clock_never_runs() -> None:
    pace = StepClock(enabled=False)
    pace.resume()
    with pace.stopped(), pace.stopped_until(nn.Linear(1, 1)):
        pass
    pace.stop()
    assert pace.own_s == 0.0


class Timeline:
    """A device's timeline in milliseconds, and the host's clock in seconds."""

    def __init__(self) -> None:
        self.device_ms, self.host_s, self.events = 0.0, 0.0, 0

    def event(self) -> TimelineEvent:
        self.events += 1
        return TimelineEvent(self)


class TimelineEvent:
    def __init__(self, timeline: Timeline) -> None:
        self.timeline, self.at = timeline, math.nan

    def record(self) -> None:
        self.at = self.timeline.device_ms

    def elapsed_time(self, end_event: TimelineEvent, /) -> float:
        return end_event.at - self.at


@pytest.mark.parametrize(("host_s", "device_ms", "share"), [(0.01, 40.0, 0.25), (0.04, 40.0, 1.0), (0.05, 40.0, 1.0)])
def test_the_share_of_launches_is_that_of_the_steps_after_a_wait(
    monkeypatch: pytest.MonkeyPatch, host_s: float, device_ms: float, share: float
) -> None:
    timeline = Timeline()
    monkeypatch.setattr("petseg.run.pace.time.perf_counter", lambda: timeline.host_s)
    meter = LaunchMeter(timeline.event)
    for number in range(6):
        if number in (2, 4):
            meter.arm()
        with meter.step():
            # other steps queue up, and say nothing
            timeline.host_s += host_s if number in (2, 4) else 100.0
            timeline.device_ms += device_ms
    assert timeline.events == 4
    assert meter.take_share() == pytest.approx(share)
    assert math.isnan(meter.take_share())


def test_without_a_gpu_launches_are_not_measured() -> None:
    meter = launch_meter(torch.device("cpu"))
    assert not meter.enabled
    meter.arm()
    with meter.step():
        pass
    assert math.isnan(meter.take_share())


def test_launches_are_measured_by_events_that_have_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", lambda enable_timing=False: ("event", enable_timing))
    meter = launch_meter(torch.device("cuda"))
    assert meter.enabled
    assert meter.new_event is not None
    assert meter.new_event() == ("event", True)


def test_an_epochs_row_has_the_shares_of_graphs_and_launches(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU whose steps take no time; a host's share is then the whole."""
    monkeypatch.setattr("petseg.run.run.launch_meter", lambda device: LaunchMeter(Timeline().event))
    train(tiny(), tmp_path / "gpu")
    assert [(row["perf/graphed"], row["perf/launching"]) for row in read_metrics(tmp_path / "gpu")] == [(0.0, 1.0)] * 2
    monkeypatch.undo()
    train(tiny(train__epochs=1), tmp_path / "cpu")
    assert not {"perf/graphed", "perf/launching"} & set(read_metrics(tmp_path / "cpu")[0])
