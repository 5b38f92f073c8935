"""What a sweep will cost, from records of trials like its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cost import estimate as estimates
from jobs.cost.budget import check_budget
from jobs.cost.estimate import CORE_HOURS, GPU_HOURS, Estimate
from jobs.cost.speeds import TrialSpeed
from jobs.design.expansion import Cell
from jobs.design.shard_sets import ShardSets
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Sweep
from petseg.config import RunConfig
from petseg.run.length import EpochTime
from petseg.run_folder.attempts import begin_attempt
from shards.manifest import Manifest
from tests.jobs.costed_sweeps import CPU, GPU, estimate_of, finish, plan


def test_records_of_other_seeds_give_the_cost_and_the_most_expensive_axis(
    pet_shards: Path, manifest: Manifest, sets: ShardSets, tmp_path: Path
) -> None:
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"model.arch": ["unet", "resnet34_unet"]})
    save_sweep(old)
    for trial, epoch_s in zip(old.trials, (360.0, 720.0), strict=True):
        finish(trial, cells[trial.id].config, manifest, epoch_s)
    axes = {"model.arch": ["unet", "resnet34_unet"], "train.seed": [1, 2]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)

    found = estimate_of(sweep, cells, sets, CPU, max_parallel=2, trials_per_job=1, probe=False)

    val = manifest.splits["val"].num_samples / manifest.splits["train"].num_samples / 3
    assert [cost.seconds for cost in found.trials] == pytest.approx([10 * s * (1 + val) for s in (360, 360, 720, 720)])
    assert found.unit == CORE_HOURS
    assert found.hours(CORE_HOURS) == pytest.approx(2 * 6.0 * (1 + val))  # two cores, 2 x 1 h and 2 x 2 h
    assert found.end_s == pytest.approx(3 * 3600 * (1 + val))
    assert [(axis.name, round(axis.spread, 3)) for axis in found.axes] == [("model.arch", 2.0), ("train.seed", 1.0)]
    assert "validation estimated" in found.trials[0].source
    assert not (tmp_path / "runs" / "lab").exists()
    with pytest.raises(ValueError, match=r"over the budget of 8: about 2 of them would fit; model\.arch costs most"):
        check_budget(found, "8cpuh")
    check_budget(found, "13 CPUh")

    fewer_threads = estimate_of(sweep, cells, sets, replace(CPU, cpus_per_task=1), 2, 1, probe=False)
    assert fewer_threads.hours(CORE_HOURS) is None


@pytest.mark.slow
def test_a_record_counts_only_where_it_fits(
    pet_shards: Path, manifest: Manifest, sets: ShardSets, tmp_path: Path
) -> None:
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"augment.policy": ["none", "elastic"]})
    save_sweep(old)
    for trial, epoch_s in zip(old.trials, (36.0, 72.0), strict=True):
        finish(trial, cells[trial.id].config, manifest, epoch_s, device="NVIDIA H100")
    axes = {"augment.policy": ["none", "elastic", "elastic_crop"], "train.seed": [1]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)

    on_gpus = estimate_of(sweep, cells, sets, GPU, 1, 1, probe=False)
    sources = [cost.source for cost in on_gpus.trials]
    assert [source.partition(",")[0] for source in sources] == [
        "records of 1 trial", "records of 1 trial", "records of 2 trials with another augmentation"
    ]  # fmt: skip
    assert (on_gpus.unit, on_gpus.gpus) == (GPU_HOURS, 2)

    for other in (replace(GPU, gpus_per_node=1), replace(CPU, tasks_per_node=2)):  # of other processes, on no GPU
        unknown = estimate_of(sweep, cells, sets, other, 1, 1, probe=False)
        assert {cost.source for cost in unknown.trials} == {"no records of trials like these, and no probe was made"}
        assert unknown.hours(unknown.unit) is None
        assert unknown.end_s is None
    with pytest.raises(ValueError, match="what 3 of 3 trials take is not known"):
        check_budget(unknown, "100cpuh")


def test_trials_side_by_side(pet_shards: Path, manifest: Manifest, sets: ShardSets, tmp_path: Path) -> None:
    """On a CPU each has half the cores; on a GPU nobody knows how far they slow each other, and the most is told."""
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"train.seed": [0]})
    save_sweep(old)
    finish(old.trials[0], cells[old.trials[0].id].config, manifest, epoch_s=360.0)
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [1, 2, 3, 4]})
    four_cores = replace(CPU, cpus_per_task=4)  # the records are of two

    found = estimate_of(sweep, cells, sets, four_cores, 1, trials_per_job=4, probe=False, trials_at_once=2)

    each_s = found.trials[0].seconds
    assert each_s
    assert found.end_s == pytest.approx(2 * each_s)
    assert found.hours(CORE_HOURS) == pytest.approx(4 * each_s * 2 / 3600)
    assert "memory is that of 2 trials at once" in found.notes
    one_gpu = replace(GPU, gpus_per_node=1)
    beside = estimate_of(sweep, cells, sets, one_gpu, 1, trials_per_job=4, probe=False, trials_at_once=2)
    assert "trials that share a GPU are estimated as one after the other, the most that it can take" in beside.notes


@pytest.mark.parametrize(
    ("name", "value", "epochs", "minutes"),
    [
        ("train.epochs", 20, 20, 20 * 12),
        ("train.budget_steps", 40, 20, 20 * 12),
        ("train.budget_steps", 7, 3.5, 3.5 * 10 + 4 * 2),  # an epoch that ends early has its validation
        ("train.budget_min", 60.0, 5, 60),
        ("train.budget_min", 11.0, 1, 12),  # the first epoch's training fits, its validation comes all the same
        ("train.budget_min", 5.0, 0.5, 5 + 2),
    ],
)
def test_a_trial_costs_what_its_budget_allows(
    name: str,
    value: float,
    epochs: float,
    minutes: float,
    manifest: Manifest,
    sets: ShardSets,
    pet_shards: Path,
    tmp_path: Path,
) -> None:
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"train.seed": [0]})
    save_sweep(old)
    finish(old.trials[0], cells[old.trials[0].id].config, manifest, epoch_s=600.0)
    attempt = begin_attempt(old.trials[0].folder, 0)
    done = {"status": "done", "host": attempt.host, "time": attempt.time + 14 * 600 + 10 * 120}
    (old.trials[0].folder / "state.json").write_text(json.dumps(done))
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {name: [value], "train.seed": [1]})
    (cost,) = estimate_of(sweep, cells, sets, CPU, max_parallel=1, trials_per_job=1, probe=False).trials
    assert (cost.epochs, cost.seconds) == (pytest.approx(epochs), pytest.approx(60 * minutes))


def test_a_budget_in_minutes_needs_no_speed(
    pet_shards: Path, manifest: Manifest, sets: ShardSets, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.budget_min": [30.0], "train.seed": [0, 1]})
    found = estimate_of(sweep, cells, sets, CPU, max_parallel=1, trials_per_job=1, probe=False)
    assert found.hours(CORE_HOURS) == 2 * 2 * 0.5
    assert [cost.epochs for cost in found.trials] == [None, None]
    assert found.trials[0].source.startswith("train.budget_min, without start and end")
    check_budget(found, "2cpuh")
    with pytest.raises(ValueError, match=r"about 1 of them would fit.*train\.budget_steps=N"):
        check_budget(found, "1cpuh")
    steps, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.budget_steps": [7]})
    (cost,) = estimate_of(steps, cells, sets, CPU, max_parallel=1, trials_per_job=1, probe=False).trials
    assert (cost.epochs, cost.seconds) == (3.5, None)


def test_estimates_do_not_import_torch() -> None:
    code = (
        "import sys, jobs.cost.estimate, jobs.usage, jobs.chain; sys.exit(bool({'torch', 'wandb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.slow
def test_gpu_memory_is_predicted_where_no_probe_measures_it(
    pet_shards: Path, manifest: Manifest, sets: ShardSets, tmp_path: Path
) -> None:
    axes = {"train.mixed_precision": ["no", "bf16"], "train.accumulation_steps": [1, 0]}
    sweep, cells = plan(pet_shards, tmp_path, axes)
    found = estimate_of(sweep, cells, sets, GPU, max_parallel=1, trials_per_job=1, probe=False)
    memory = {tuple(cost.trial.axes.values()): cost.gpu_memory_gib for cost in found.trials}
    assert memory["no", 0] is memory["bf16", 0] is None  # their passes are cut to the GPU
    assert memory["no", 1] > memory["bf16", 1] > 0  # type: ignore[operator]
    assert any(note.startswith("GPU GiB: predicted") for note in found.notes)
    on_cpu = estimate_of(sweep, cells, sets, CPU, max_parallel=1, trials_per_job=1, probe=False)
    assert {cost.gpu_memory_gib for cost in on_cpu.trials} == {None}


def estimate_with_probe(
    probe: Callable[[RunConfig], TrialSpeed], sweep: Sweep, cells: dict[str, Cell], sets: ShardSets, gpus: int
) -> Estimate:
    """The estimate where a probe answers at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "speed_by_probe", lambda config, manifest, resources: probe(config))
        patch.setattr(estimates, "predict_gpu_memory", lambda configs, sets, resources: ({}, []))
        return estimate_of(sweep, cells, sets, replace(CPU, gpus_per_node=gpus), 1, 1, probe=True)


def of_a_probe(on_gpu: bool, memory_gib: float | None = 1.0) -> TrialSpeed:
    return TrialSpeed(EpochTime(60.0, 12.0), 30.0, on_gpu, "a probe", 2.0, memory_gib)


def test_a_probe_that_fails_leaves_its_own_trials_without_an_estimate(
    pet_shards: Path, sets: ShardSets, tmp_path: Path
) -> None:
    axes = {"model.arch": ["unet", "resnet34_unet"], "train.seed": [0, 1]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)

    def probe(config: RunConfig) -> TrialSpeed:
        if config.model.arch == "unet":
            raise LookupError("the probe failed: MemoryError")
        return of_a_probe(on_gpu=False)

    found = estimate_with_probe(probe, sweep, cells, sets, gpus=0)
    assert [cost.seconds for cost in found.trials] == [None, None, 30 + 10 * 72, 30 + 10 * 72]
    assert [cost.source for cost in found.trials] == ["the probe failed: MemoryError"] * 2 + ["a probe"] * 2
    assert found.end_s is None


def test_a_probe_on_a_cpu_is_told_and_gives_no_estimate_for_gpus(
    pet_shards: Path, sets: ShardSets, tmp_path: Path
) -> None:
    axes = {"model.arch": ["unet", "resnet34_unet"]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)
    found = estimate_with_probe(lambda config: of_a_probe(on_gpu=False), sweep, cells, sets, gpus=1)
    assert [cost.seconds for cost in found.trials] == [None, None]
    assert {cost.source for cost in found.trials} == {"a probe: 12 min a trial, no estimate for GPUs"}
    assert sum("this machine has no GPU" in note for note in found.notes) == 1
    found = estimate_with_probe(lambda config: of_a_probe(on_gpu=True), sweep, cells, sets, gpus=1)
    assert [cost.seconds for cost in found.trials] == [750, 750]
    assert not any("this machine has no GPU" in note for note in found.notes)


def test_a_probe_stands_for_other_augmentations_and_says_so(pet_shards: Path, sets: ShardSets, tmp_path: Path) -> None:
    axes = {"augment.policy": ["none", "elastic"]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)
    found = estimate_with_probe(lambda config: of_a_probe(on_gpu=True), sweep, cells, sets, gpus=1)
    assert {cost.source for cost in found.trials} == {"a probe, augmented by elastic"}
    one, cells = plan(pet_shards, tmp_path / "runs" / "one", {"augment.policy": ["elastic"], "train.seed": [0, 1]})
    found = estimate_with_probe(lambda config: of_a_probe(on_gpu=True), one, cells, sets, gpus=1)
    assert {cost.source for cost in found.trials} == {"a probe"}


@pytest.mark.parametrize(("timeout_min", "attempts"), [(13, ""), (12, "2"), (7, "2"), (6, "3"), (4, "4")])
def test_a_trial_longer_than_its_job_takes_several_attempts(
    pet_shards: Path, sets: ShardSets, tmp_path: Path, timeout_min: int, attempts: str
) -> None:
    """One of 12.5 minutes; its second attempt goes on where the first one ended."""
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "speed_by_probe", lambda config, manifest, resources: of_a_probe(on_gpu=True))
        found = estimate_of(sweep, cells, sets, replace(CPU, timeout_min=timeout_min), 1, 1, probe=True)
    told = [note for note in found.notes if "goes over the time limit" in note]
    assert len(told) == bool(attempts)
    assert all(f"limit of {timeout_min} min: it takes {attempts} attempts" in note for note in told)


def test_memory_is_that_of_all_processes_of_a_node_and_of_the_trials_at_once(
    pet_shards: Path, sets: ShardSets, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0, 1, 2, 3, 4]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "speed_by_probe", lambda config, manifest, resources: of_a_probe(on_gpu=True))
        two = estimate_of(sweep, cells, sets, GPU, 1, 1, probe=True)
        beside = estimate_of(sweep, cells, sets, replace(GPU, gpus_per_node=1), 1, 4, True, trials_at_once=2)
        unlimited = estimate_of(sweep, cells, sets, GPU, 0, 4, probe=True)
    assert (two.trials[0].host_memory_gib, two.gpu_memory_gib) == (4.0, 1.0)
    assert (beside.trials[0].host_memory_gib, beside.gpu_memory_gib) == (4.0, 2.0)
    assert beside.end_s == 5 * 750  # two jobs, one after the other, of four trials and of one
    assert (unlimited.max_parallel, unlimited.end_s) == (2, 4 * 750)  # both jobs at once, the first one is longer
