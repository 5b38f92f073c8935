"""An estimate from speeds that are given: what is left of each trial, when the last job ends, and what is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.cost import estimate as module
from jobs.cost.budget import check_budget
from jobs.cost.estimate import CORE_HOURS, GPU_HOURS, AxisCost, Estimate, TrialCost
from jobs.cost.speeds import TrialSpeed
from jobs.design.shard_sets import ShardSets
from jobs.runs.trial import Sweep, Trial
from petseg.config import RunConfig
from petseg.run.length import EpochTime
from petseg.run_folder.layout import append_metrics
from shards.manifest import Manifest
from slurm.resources import Resources
from tests.jobs.costed_sweeps import CPU, GPU, estimate_of, finish, plan

Given = Callable[..., tuple[Estimate, Sweep]]
TRIAL = Trial("0000000000", {"model.arch": "unet"}, Path("none"))
QUEUE = "the wait in the queue is not known, and not in it"


def speed(epoch_s: float, on_gpu: bool = True, gpu_gib: float | None = 1.0) -> TrialSpeed:
    return TrialSpeed(EpochTime(epoch_s, 0.0), 100.0, on_gpu, "a probe", 2.0, gpu_gib)


@pytest.fixture
def given(pet_shards: Path, sets: ShardSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """The estimate of a sweep whose trials of width 4 need 10 s an epoch, those of width 8 need 20 s, and so on."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(module, "predict_gpu_memory", lambda configs, sets, resources: ({}, []))

    def estimate(
        axes: dict[str, list], resources: Resources = CPU, speeds: Any = None, before: Any = None, **more: Any
    ) -> tuple[Estimate, Sweep]:
        def probe(config: RunConfig, manifest: Manifest, resources: Resources) -> TrialSpeed:
            return speeds(config, resources) if speeds else speed(2.5 * config.model.width)

        monkeypatch.setattr(module, "speed_by_probe", probe)
        sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)
        if before:
            before(sweep, cells)
        return estimate_of(sweep, cells, sets, resources, **({"max_parallel": 1, "probe": True} | more)), sweep

    return estimate


WIDTHS = {"model.width": [4, 8, 12], "train.seed": [0]}  # 200, 300 and 400 s


@pytest.mark.parametrize(
    ("more", "end_s"),
    [
        ({}, 900.0),
        ({"max_parallel": 2}, 600.0),  # the third after the first
        ({"max_parallel": 3}, 400.0),
        ({"max_parallel": 9}, 400.0),
        ({"max_parallel": 2, "trials_per_job": 2}, 500.0),
        ({"max_parallel": 1, "trials_per_job": 3, "trials_at_once": 2}, 600.0),
        (
            {"max_parallel": 1, "trials_per_job": 3, "trials_at_once": 2, "resources": replace(GPU, gpus_per_node=1)},
            900.0,
        ),
    ],
)
def test_the_end_is_that_of_the_last_job(given: Given, more: dict[str, Any], end_s: float) -> None:
    found, _ = given(WIDTHS, **more)
    assert [cost.seconds for cost in found.trials] == [200.0, 300.0, 400.0]
    assert found.end_s == end_s
    assert QUEUE in found.notes


def test_the_axes_are_sorted_by_their_spread_and_show_means(given: Given) -> None:
    axes = {"train.seed": [0], "train.epochs": [10, 12], "model.width": [4, 12]}
    found, _ = given(axes)
    assert [cost.seconds for cost in found.trials] == [200.0, 400.0, 220.0, 460.0]
    assert found.axes == (
        AxisCost("model.width", {"4": 210.0, "12": 430.0}), AxisCost("train.epochs", {"10": 300.0, "12": 340.0}),
    )  # fmt: skip
    assert found.axes[1].spread == pytest.approx(340 / 300)
    assert AxisCost("x", {"a": 0.0, "b": 2.0}).spread == pytest.approx(2e9)


def test_what_was_trained_is_not_trained_again(given: Given, sets: ShardSets, manifest: Manifest) -> None:
    """The first has a result, the second three of ten epochs, the third more than its config asks for."""

    def before(sweep: Sweep, cells: dict[str, Any]) -> None:
        done, some, all_ = sweep.trials
        finish(done, cells[done.id].config, manifest, 1.0, device="NVIDIA H100")
        for trial, epochs in ((some, 3), (all_, 11)):
            trial.folder.mkdir(parents=True)
            append_metrics({"epoch": epochs, "step": 2 * epochs, "perf/seconds": 1.0}, trial.folder)

    found, sweep = given(WIDTHS, before=before)
    assert [(cost.trial.id, cost.epochs, cost.seconds) for cost in found.trials] == [
        (sweep.trials[1].id, 7.0, 240.0), (sweep.trials[2].id, 0.0, 100.0),
    ]  # fmt: skip
    unknown, _ = given(WIDTHS, probe=False)
    assert [(cost.epochs, cost.seconds) for cost in unknown.trials] == [(7.0, None), (0.0, None)]
    assert (unknown.end_s, unknown.hours(CORE_HOURS), unknown.axes, unknown.notes) == (None, None, (), ())


def test_a_trial_is_estimated_with_the_values_that_a_retry_gave_it(given: Given) -> None:
    asked = []

    def before(sweep: Sweep, cells: dict[str, Any]) -> None:
        (trial,) = sweep.trials
        trial.folder.mkdir(parents=True)
        (trial.folder / "overrides.json").write_text(json.dumps({"train.accumulation_steps": 4}))

    def speeds(config: RunConfig, resources: Resources) -> TrialSpeed:
        asked.append((config.train.accumulation_steps, resources.cpus_per_task))
        return speed(1.0)

    given({"train.seed": [0]}, replace(CPU, cpus_per_task=7), speeds, before, trials_per_job=2, trials_at_once=2)
    assert asked == [(4, 3)]
    asked.clear()
    given({"train.seed": [0]}, replace(CPU, cpus_per_task=1), speeds, trials_per_job=2, trials_at_once=2)
    assert asked == [(4, 1)]


def test_what_a_trial_holds_is_what_its_job_holds(given: Given) -> None:
    two = replace(GPU, nodes=2, cpus_per_task=3)  # of two GPUs each
    found, _ = given({"train.seed": [0]}, two)
    assert (found.gpus, found.cores, found.unit) == (4, 12.0, GPU_HOURS)
    assert (found.hours(GPU_HOURS), found.hours(CORE_HOURS)) == pytest.approx((4 * 200 / 3600, 12 * 200 / 3600))
    assert (found.host_memory_gib, found.gpu_memory_gib) == (4.0, 1.0)
    found, _ = given({"train.seed": [0]}, replace(CPU, cpus_per_task=6, tasks_per_node=2))
    assert (found.gpus, found.cores, found.unit, found.host_memory_gib) == (0, 12.0, CORE_HOURS, 4.0)
    found, _ = given({"train.seed": [0]}, replace(CPU, cpus_per_task=6), trials_per_job=3, trials_at_once=3)
    assert (found.cores, found.host_memory_gib) == (2.0, 6.0)
    assert found.notes[0] == "memory is that of 3 trials at once"


def test_memory_that_no_probe_measured_is_predicted(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def predict(configs: dict[str, RunConfig], sets: ShardSets, resources: Resources) -> tuple[dict[str, float], list]:
        asked.append([config.model.width for config in configs.values()])
        return dict.fromkeys(configs, 5.0), ["predicted"]

    monkeypatch.setattr(module, "predict_gpu_memory", predict)
    speeds = lambda config, resources: speed(1.0, gpu_gib=None if config.model.width == 8 else 1.0)  # noqa: E731
    one_gpu = replace(GPU, gpus_per_node=1)
    found, _ = given(WIDTHS, one_gpu, speeds, trials_per_job=2, trials_at_once=2)
    assert asked == [[8]]
    assert [cost.gpu_memory_gib for cost in found.trials] == [2.0, 10.0, 2.0]
    assert found.gpu_memory_gib == 10.0
    assert found.notes[:3] == (
        "predicted",
        "memory is that of 2 trials at once",
        "trials that share a GPU are estimated as one after the other, the most that it can take",
    )


@pytest.mark.parametrize(
    ("load", "probe", "busy"), [(2.1, True, True), (2.0, True, False), (0.1, True, False), (9.0, False, False)]
)
def test_a_busy_machine_is_told_where_it_is_probed(
    given: Given, monkeypatch: pytest.MonkeyPatch, load: float, probe: bool, busy: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 50.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    found, _ = given({"train.seed": [0]}, probe=probe)
    note = f"this machine is busy (load {load:.1f} on 4 cores), which makes a probe on its CPU slower"
    assert (note in found.notes) == busy
    assert any("busy" in one for one in found.notes) == busy


def test_a_probe_on_a_cpu_stands_for_jobs_without_gpus_alone(given: Given) -> None:
    speeds = lambda config, resources: speed(10.0, on_gpu=False)  # noqa: E731
    assert given({"train.seed": [0]}, CPU, speeds)[0].hours(CORE_HOURS) is not None
    found, _ = given({"train.epochs": [20]}, GPU, speeds)
    assert found.hours(GPU_HOURS) is None
    assert found.trials[0].source == "a probe: 5 min a trial, no estimate for GPUs"
    assert (found.trials[0].epochs, found.notes[0][:24]) == (20.0, "this machine has no GPU:")


def costs(*seconds: float | None, host: float | None = None, gpu: float | None = None) -> tuple[TrialCost, ...]:
    return tuple(TrialCost(TRIAL, one, 10, host, gpu, "no probe was made") for one in seconds)


def whole(trials: tuple[TrialCost, ...], gpus: int = 2, axes: tuple[AxisCost, ...] = ()) -> Estimate:
    return Estimate(trials, gpus, 8.0, None, 1, axes, ())


def test_hours_and_memory_of_an_estimate() -> None:
    one = whole(costs(1800, 3600))
    assert (one.hours(GPU_HOURS), one.hours(CORE_HOURS)) == (3.0, 12.0)
    assert (one.host_memory_gib, one.gpu_memory_gib, one.unit) == (None, None, GPU_HOURS)
    assert whole(costs(1800, None)).hours(GPU_HOURS) is None
    assert whole(()).hours(GPU_HOURS) == 0
    mixed = whole((*costs(1, host=3.0, gpu=1.0), *costs(1, host=2.0, gpu=4.0), *costs(1)))
    assert (mixed.host_memory_gib, mixed.gpu_memory_gib) == (3.0, 4.0)
    assert whole(costs(1), gpus=0).unit == CORE_HOURS


def test_a_budget_holds_up_to_its_last_second_and_says_what_would_fit() -> None:
    four = whole(costs(*[1800] * 4))
    check_budget(four, "4gpuh")
    check_budget(four, "16cpuh")
    with pytest.raises(
        ValueError, match=r"4 GPU hours for 4 trials goes over the budget of 3\.9: about 3 of them"
    ) as told:
        check_budget(four, "3.9gpuh")
    assert "costs most" not in str(told.value)
    for dearest, named in ((105.0, False), (106.0, True)):
        axes = (AxisCost("model.arch", {"a": 100.0, "b": dearest}), AxisCost("train.seed", {"a": 1.0, "b": 9.0}))
        with pytest.raises(ValueError, match="about 1 of them would fit") as told:
            check_budget(whole(costs(*[1800] * 4), axes=axes), "4cpuh")
        assert ("fit; model.arch costs most: take" in str(told.value)) == named
    with pytest.raises(ValueError, match=r"what 2 of 3 trials take is not known \(no probe was made\)"):
        check_budget(whole(costs(None, 1, None)), "4gpuh")
    check_budget(whole((), gpus=0), "0gpuh")
    with pytest.raises(ValueError, match="ask for no GPU, so give core hours"):
        check_budget(whole(costs(1), gpus=0), "1gpuh")
    with pytest.raises(ValueError, match="write hours and their unit"):
        check_budget(whole(()), "1 hour")
