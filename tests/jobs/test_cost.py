"""What a sweep will cost, from records and from a real probe."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from jobs.cost import CORE_HOURS, GPU_HOURS, AxisCost, Estimate, TrialCost, check_budget, estimate, parse_budget
from jobs.cost_pace import pace_of, probes_needed, read_records
from jobs.cost_table import render
from jobs.spec import Cell, Spec, expand
from jobs.trial import Sweep, Trial, plan_sweep, save_sweep
from petseg.config import RunConfig
from petseg.config_values import trial_id, with_values
from petseg.length import EpochTime
from petseg.lives import begin_life
from petseg.run_folder import Result, append_metrics, claim_folder, save_result, write_metrics
from shards.manifest import Manifest, load_manifest
from slurm.local import visible_gpus
from slurm.resources import Resources

SMALL = {"data.image_size_px": 64, "model.width": 4, "train.epochs": 10, "train.batch_size": 16}
CPU = Resources(gpus_per_node=0, cpus_per_task=2)
GPU = Resources(gpus_per_node=2, cpus_per_task=4)


@pytest.fixture(scope="session")
def manifest(pet_shards: Path) -> Manifest:
    return load_manifest(pet_shards)


def plan(shards: Path, folder: Path, axes: dict[str, list]) -> tuple[Sweep, dict[str, Cell]]:
    spec = Spec("lab", axes, {**SMALL, "data.shards": str(shards)})
    cells, manifest = expand(spec), load_manifest(shards)
    sweep = plan_sweep(spec, cells, manifest, str(shards), folder)
    return sweep, {trial_id(cell.config, manifest.hash): cell for cell in cells}


def finish(trial: Trial, config: RunConfig, manifest: Manifest, epoch_s: float, device: str = "cpu, 2 threads") -> None:
    """As if a trial had run: ten epochs, the first one slower, and a result."""
    claim_folder(config, manifest.hash, trial.folder)
    for epoch in range(1, 11):
        append_metrics(
            {"epoch": epoch, "step": 2 * epoch, "perf/seconds": epoch_s * (5 if epoch == 1 else 1)}, trial.folder
        )
    save_result(
        Result(
            trial_id=trial.id, metrics={"val/dice": 0.9}, best_epoch=10, epochs=10, parameters=1,
            world_size=2 if device != "cpu, 2 threads" else 1, host="node1", device=device, train_s=14 * epoch_s,
            images_per_s=1.0, data_wait=0.0, headroom=1.0,
        ),
        trial.folder,
    )  # fmt: skip


def test_records_of_other_seeds_give_the_cost_and_the_axis_that_costs_most(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"model.arch": ["unet", "resnet34_unet"]})
    save_sweep(old)
    for trial, epoch_s in zip(old.trials, (360.0, 720.0), strict=True):
        finish(trial, cells[trial.id].config, manifest, epoch_s)
    axes = {"model.arch": ["unet", "resnet34_unet"], "train.seed": [1, 2]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)

    found = estimate(sweep, cells, manifest, CPU, max_parallel=2, trials_per_job=1, probe=False)

    val = manifest.splits["val"].num_samples / manifest.splits["train"].num_samples / 3
    assert [cost.seconds for cost in found.trials] == pytest.approx([10 * s * (1 + val) for s in (360, 360, 720, 720)])
    assert found.unit == CORE_HOURS
    assert found.hours(CORE_HOURS) == pytest.approx(2 * 6.0 * (1 + val))  # two cores, 2 x 1 h and 2 x 2 h
    assert found.end_s == pytest.approx(3 * 3600 * (1 + val))
    assert [(axis.name, round(axis.spread, 3)) for axis in found.axes] == [("model.arch", 2.0), ("train.seed", 1.0)]
    assert "validation reckoned" in found.trials[0].source
    assert not (tmp_path / "runs" / "lab").exists()
    with pytest.raises(ValueError, match=r"over the budget of 8: about 2 of them would fit; model\.arch costs most"):
        check_budget(found, "8cpuh")
    check_budget(found, "13 CPUh")

    fewer_threads = estimate(sweep, cells, manifest, replace(CPU, cpus_per_task=1), 2, 1, probe=False)
    assert fewer_threads.hours(CORE_HOURS) is None


def test_a_record_counts_only_where_it_fits(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"augment.policy": ["none", "elastic"]})
    save_sweep(old)
    for trial, epoch_s in zip(old.trials, (36.0, 72.0), strict=True):
        finish(trial, cells[trial.id].config, manifest, epoch_s, device="NVIDIA H100")
    axes = {"augment.policy": ["none", "elastic", "elastic_crop"], "train.seed": [1]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)

    on_gpus = estimate(sweep, cells, manifest, GPU, 1, 1, probe=False)
    sources = [cost.source for cost in on_gpus.trials]
    assert [source.partition(",")[0] for source in sources] == [
        "records of 1 trial", "records of 1 trial", "records of 2 trials with another augmentation"
    ]  # fmt: skip
    assert (on_gpus.unit, on_gpus.gpus) == (GPU_HOURS, 2)

    for other in (replace(GPU, gpus_per_node=1), replace(CPU, tasks_per_node=2)):  # of other processes, on no GPU
        unknown = estimate(sweep, cells, manifest, other, 1, 1, probe=False)
        assert {cost.source for cost in unknown.trials} == {"no records of trials like these, and no probe was made"}
        assert unknown.hours(unknown.unit) is None
        assert unknown.end_s is None
    with pytest.raises(ValueError, match="what 3 of 3 trials take is not known"):
        check_budget(unknown, "100cpuh")


def test_what_a_trial_did_besides_training_is_known_from_its_one_life(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    save_sweep(sweep)
    (trial,) = sweep.trials
    finish(trial, cells[trial.id].config, manifest, epoch_s=10.0)
    life = begin_life(trial.folder, 0)
    (trial.folder / "state.json").write_text(json.dumps({"status": "done", "host": life.host, "time": life.time + 200}))
    (record,) = read_records(tmp_path / "runs")
    assert record.step_s == 5.0  # two steps an epoch
    assert record.beside_epoch_s == pytest.approx((200 - 140) / 10)
    begin_life(trial.folder, 4)  # a second life: the wait between the two is not work
    (record,) = read_records(tmp_path / "runs")
    assert record.beside_epoch_s is None


def test_trials_side_by_side(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    """On a CPU each has half the cores; on a GPU nobody knows how far they slow each other, and the most is told."""
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"train.seed": [0]})
    save_sweep(old)
    finish(old.trials[0], cells[old.trials[0].id].config, manifest, epoch_s=360.0)
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [1, 2, 3, 4]})
    four_cores = replace(CPU, cpus_per_task=4)  # the records are of two

    found = estimate(sweep, cells, manifest, four_cores, 1, trials_per_job=4, probe=False, trials_at_once=2)

    each_s = found.trials[0].seconds
    assert each_s
    assert found.end_s == pytest.approx(2 * each_s)
    assert found.hours(CORE_HOURS) == pytest.approx(4 * each_s * 2 / 3600)
    assert "memory is that of 2 trials at once" in found.notes
    beside = estimate(sweep, cells, manifest, GPU, 1, trials_per_job=4, probe=False, trials_at_once=2)
    assert "trials that share a GPU are reckoned as one after the other, the most that it can take" in beside.notes


def test_a_probe_measures_each_kind_of_trial_once(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    axes = {"augment.policy": ["none", "elastic"], "train.seed": [0, 1]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)
    ((ids, config),) = probes_needed({identifier: cell.config for identifier, cell in cells.items()})
    assert (len(ids), config.augment.policy) == (4, "elastic")

    one_core = replace(CPU, cpus_per_task=1)
    found = estimate(sweep, cells, manifest, one_core, max_parallel=1, trials_per_job=2, probe=True)
    assert all(cost.seconds and cost.seconds > 0 for cost in found.trials)
    assert {cost.source for cost in found.trials} == {found.trials[0].source}
    assert "a probe of 3 steps on cpu, " in found.trials[0].source
    assert found.host_memory_gib is not None
    assert found.gpu_memory_gib is None
    assert found.end_s == pytest.approx(sum(cost.seconds or 0 for cost in found.trials))


@pytest.mark.slow
def test_a_probe_that_fails_leaves_a_note(manifest: Manifest, pet_shards: Path, tmp_path: Path) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    gone = {i: replace(c, config=with_values(c.config, {"data.shards": "nowhere"})) for i, c in cells.items()}
    found = estimate(sweep, gone, manifest, CPU, 1, 1, probe=True)
    assert "the probe failed: ValueError: no shard set in nowhere" in found.trials[0].source


@pytest.mark.slow
@pytest.mark.skipif(bool(visible_gpus()), reason="a machine with GPUs can tell what jobs with GPUs take")
def test_a_probe_on_a_cpu_is_no_estimate_for_gpus(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    one_gpu = Resources(gpus_per_node=1, cpus_per_task=1)
    found = estimate(sweep, cells, manifest, one_gpu, 1, 1, probe=True)
    console = Console(width=240)
    with console.capture() as capture:
        console.print(render(found))
    assert "an unknown number of GPU hours" in capture.get()
    assert "no estimate for GPUs" in capture.get()
    assert "this machine has no GPU" in capture.get()
    with pytest.raises(ValueError, match="probe on a node like theirs"):
        check_budget(found, "1gpuh")


def test_runs_that_begin_on_small_pictures_have_a_pace_of_their_own() -> None:
    sizes = [{"train.start_size_px": 0}, {"train.start_size_px": 128}, {"train.start_size_px": 128, "train.seed": 1}]
    configs = {str(number): with_values(RunConfig(), values) for number, values in enumerate(sizes)}
    assert [ids for ids, _ in probes_needed(configs)] == [["0"], ["1", "2"]]


def test_the_pace_of_a_probe_by_hand(manifest: Manifest) -> None:
    config = with_values(RunConfig(), {"train.batch_size": 16})  # 27 train, 3 val, 30 test: 2 steps
    measured = {
        "device": "cpu, 1 threads", "on_gpu": False, "threads": 1, "steps": 5, "step_s": 10.0,
        "eval_s_per_sample": 2.0, "save_s": 1.0, "load_s_per_sample": 0.5, "start_s": 3.0, "gpu_memory_gib": 0.0,
        "host_memory_gib": 1.5,
    }  # fmt: skip
    pace = pace_of(measured, config, manifest, replace(CPU, tasks_per_node=2))
    assert pace.epoch == EpochTime(train_s=2 * 10, beside_s=3 * 1.0 + 1)
    assert pace.rest_s == 3 + 30 * 0.5 + 3 * 1.0 + 30 * 1.0
    assert "as one of 2 processes" in pace.source


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
    name: str, value: float, epochs: float, minutes: float, manifest: Manifest, pet_shards: Path, tmp_path: Path
) -> None:
    old, cells = plan(pet_shards, tmp_path / "runs" / "old", {"train.seed": [0]})
    save_sweep(old)
    finish(old.trials[0], cells[old.trials[0].id].config, manifest, epoch_s=600.0)
    life = begin_life(old.trials[0].folder, 0)
    done = {"status": "done", "host": life.host, "time": life.time + 14 * 600 + 10 * 120}
    (old.trials[0].folder / "state.json").write_text(json.dumps(done))
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {name: [value], "train.seed": [1]})
    (cost,) = estimate(sweep, cells, manifest, CPU, max_parallel=1, trials_per_job=1, probe=False).trials
    assert (cost.epochs, cost.seconds) == (pytest.approx(epochs), pytest.approx(60 * minutes))


def test_minutes_are_known_without_a_pace(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.budget_min": [30.0], "train.seed": [0, 1]})
    found = estimate(sweep, cells, manifest, CPU, max_parallel=1, trials_per_job=1, probe=False)
    assert found.hours(CORE_HOURS) == 2 * 2 * 0.5
    assert [cost.epochs for cost in found.trials] == [None, None]
    assert found.trials[0].source.startswith("train.budget_min, without start and end")
    check_budget(found, "2cpuh")
    with pytest.raises(ValueError, match=r"about 1 of them would fit.*train\.budget_steps=N"):
        check_budget(found, "1cpuh")
    steps, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.budget_steps": [7]})
    (cost,) = estimate(steps, cells, manifest, CPU, max_parallel=1, trials_per_job=1, probe=False).trials
    assert (cost.epochs, cost.seconds) == (3.5, None)


def test_a_trial_that_ended_within_an_epoch_says_what_a_step_takes(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.budget_steps": [3]})
    save_sweep(sweep)
    (trial,) = sweep.trials
    finish(trial, cells[trial.id].config, manifest, epoch_s=1.0)
    rows = [{"epoch": 1, "step": 2, "perf/seconds": 50.0}, {"epoch": 2, "step": 3, "perf/seconds": 10.0}]
    write_metrics(rows, trial.folder)
    (record,) = read_records(tmp_path / "runs")
    assert record.step_s == 10.0


@pytest.mark.parametrize(
    ("text", "budget"),
    [("20gpuh", (20.0, GPU_HOURS)), ("8cpuh", (8.0, CORE_HOURS)), (" 2.5 GPUh", (2.5, GPU_HOURS))],
)
def test_budgets_are_read(text: str, budget: tuple[float, str]) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["20", "gpuh", "-1gpuh", "20 h", "nan gpuh", "1e3gpuh", ""])
def test_what_is_no_budget_is_told_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 20gpuh, 2\.5gpuh or 8cpuh"):
        parse_budget(text)


def of(seconds: list[float], gpus: int) -> Estimate:
    costs = tuple(
        TrialCost(Trial(f"{n:010d}", {"model.arch": "unet"}, Path("none")), s, 10, None, None, "records of 1 trial")
        for n, s in enumerate(seconds)
    )
    axes = (AxisCost("model.arch", {"unet": 60.0, "resnet34_unet": 90.0}),)
    return Estimate(costs, gpus=gpus, cores=8, end_s=sum(seconds), max_parallel=1, axes=axes, notes=())


def test_the_budget_is_held_in_either_unit() -> None:
    check_budget(of([1800, 1800], gpus=2), "2gpuh")
    check_budget(of([1800, 1800], gpus=2), "8cpuh")
    with pytest.raises(ValueError, match=r"estimate of 2 GPU hours for 2 trials goes over the budget of 1\.5: about 1"):
        check_budget(of([1800, 1800], gpus=2), "1.5gpuh")
    with pytest.raises(ValueError, match="ask for no GPU, so give core hours"):
        check_budget(of([1800], gpus=0), "1gpuh")
    check_budget(of([], gpus=0), "1gpuh")


def test_many_trials_are_cut_short_and_the_axes_are_told() -> None:
    console = Console(width=240)
    with console.capture() as capture:
        console.print(render(of([60.0] * 50, gpus=1)))
    assert "50 trials to run: about 0.833 GPU hours, 50 min after the first start with 1 at a time" in capture.get()
    assert "and 10 more trials" in capture.get()
    assert "model.arch: unet 60 s, resnet34_unet 2 min a trial in the mean, 1.5 times between them" in capture.get()


def test_it_is_free_of_torch() -> None:
    code = "import sys, jobs.cost, jobs.usage, jobs.chain; sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_gpu_memory_is_predicted_where_no_probe_measures_it(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    axes = {"train.mixed_precision": ["no", "bf16"], "train.accumulation_steps": [1, 0]}
    sweep, cells = plan(pet_shards, tmp_path, axes)
    found = estimate(sweep, cells, manifest, GPU, max_parallel=1, trials_per_job=1, probe=False)
    memory = {tuple(cost.trial.axes.values()): cost.gpu_memory_gib for cost in found.trials}
    assert memory["no", 0] is memory["bf16", 0] is None  # their passes are cut to the GPU
    assert memory["no", 1] > memory["bf16", 1] > 0  # type: ignore[operator]
    assert any(note.startswith("GPU GiB: predicted") for note in found.notes)
    on_cpu = estimate(sweep, cells, manifest, CPU, max_parallel=1, trials_per_job=1, probe=False)
    assert {cost.gpu_memory_gib for cost in on_cpu.trials} == {None}
