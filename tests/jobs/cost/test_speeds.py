"""The speed of trials: what records say of it, and what a real probe measures."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.cost import speeds
from jobs.cost.budget import check_budget
from jobs.cost.speeds import Record, probes_needed, read_records, speed_by_records, speed_from_probe
from jobs.cost.table import render
from jobs.design.shard_sets import ShardSets
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Trial
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run.length import EpochTime
from petseg.run_folder.attempts import begin_attempt
from petseg.run_folder.layout import write_metrics
from shards.manifest import Manifest
from slurm.gpus import visible_gpus
from slurm.resources import Resources
from tests.jobs.costed_sweeps import CPU, estimate_of, finish, plan


def recorded(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> tuple[Trial, RunConfig, Record]:
    """The only trial of a sweep, which has finished with epochs of 10 s, its config and its record."""
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    save_sweep(sweep)
    (trial,) = sweep.trials
    config = cells[trial.id].config
    finish(trial, config, manifest, epoch_s=10.0)
    (record,) = read_records(tmp_path / "runs")
    return trial, config, record


def test_time_beside_training_comes_from_trials_with_one_attempt(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    save_sweep(sweep)
    (trial,) = sweep.trials
    finish(trial, cells[trial.id].config, manifest, epoch_s=10.0)
    attempt = begin_attempt(trial.folder, 0)
    (trial.folder / "state.json").write_text(
        json.dumps({"status": "done", "host": attempt.host, "time": attempt.time + 200})
    )
    (record,) = read_records(tmp_path / "runs")
    assert record.step_s == 5.0  # two steps an epoch
    assert record.beside_epoch_s == pytest.approx((200 - 140) / 10)
    begin_attempt(trial.folder, 4)  # a second attempt: the wait between the two is not work
    (record,) = read_records(tmp_path / "runs")
    assert record.beside_epoch_s is None


def test_results_without_threads_count_only_for_cpu_jobs_without_other_records(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """Earlier versions noted them in the device's name alone, which is for people."""
    trial, config, record = recorded(pet_shards, manifest, tmp_path)
    assert record.threads == 2
    path = trial.folder / "result.json"
    content = json.loads(path.read_text())
    del content["threads"]
    path.write_text(json.dumps(content))
    (old,) = read_records(tmp_path / "runs")
    assert old == replace(record, threads=None)
    seven = replace(CPU, cpus_per_task=7)
    speed = speed_by_records(config, manifest, seven, [old])
    assert speed.epoch.train_s == 10.0
    assert "on an unknown number of threads" in speed.source
    speed = speed_by_records(config, manifest, seven, [old, replace(record, threads=7, step_s=1.0)])
    assert (speed.epoch.train_s, "unknown number" in speed.source) == (2.0, False)
    for others in (seven, replace(CPU, gpus_per_node=1)):
        with pytest.raises(LookupError, match="no records of trials like these"):
            speed_by_records(config, manifest, others, [record])
    with pytest.raises(LookupError, match="no records of trials like these"):
        speed_by_records(config, manifest, replace(CPU, gpus_per_node=1), [old])


@pytest.mark.slow
def test_a_probe_measures_each_kind_of_trial_once(
    pet_shards: Path, manifest: Manifest, sets: ShardSets, tmp_path: Path
) -> None:
    axes = {"augment.policy": ["none", "elastic"], "train.seed": [0, 1]}
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", axes)
    ((ids, config),) = probes_needed({identifier: cell.config for identifier, cell in cells.items()})
    assert (len(ids), config.augment.policy) == (4, "elastic")

    one_core = replace(CPU, cpus_per_task=1)
    found = estimate_of(sweep, cells, sets, one_core, max_parallel=1, trials_per_job=2, probe=True)
    assert [bool(cost.seconds and cost.seconds > 0) for cost in found.trials] == [True] * 4
    assert {cost.source for cost in found.trials} == {found.trials[0].source}
    assert "a probe of 3 steps on cpu, " in found.trials[0].source
    assert found.host_memory_gib is not None
    assert found.gpu_memory_gib is None
    assert found.end_s == pytest.approx(sum(cost.seconds or 0 for cost in found.trials))


@pytest.mark.slow
def test_a_probe_that_fails_leaves_a_note(
    manifest: Manifest, sets: ShardSets, pet_shards: Path, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    gone = {i: replace(c, config=with_values(c.config, {"data.shards": "nowhere"})) for i, c in cells.items()}
    known = ShardSets({**sets.manifests, "nowhere": manifest})  # it was there when its manifest was read
    found = estimate_of(sweep, gone, known, CPU, 1, 1, probe=True)
    assert f"the probe failed: ShardSetError: no shard set in {Path.cwd() / 'nowhere'}" in found.trials[0].source


def test_a_shard_set_that_was_not_read_is_named_with_those_that_were(
    manifest: Manifest, sets: ShardSets, pet_shards: Path, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    gone = {
        i: replace(c, config=with_values(c.config, {"data.shards": "https://me:word@host/x"})) for i, c in cells.items()
    }
    text = f"data.shards = 'https://host/x': this set's manifest was not read; choose one of {pet_shards}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        estimate_of(sweep, gone, sets, CPU, 1, 1, probe=False)


@pytest.mark.slow
@pytest.mark.skipif(bool(visible_gpus()), reason="a machine with GPUs can tell what jobs with GPUs take")
def test_a_probe_on_a_cpu_is_no_estimate_for_gpus(
    pet_shards: Path, manifest: Manifest, sets: ShardSets, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    one_gpu = Resources(gpus_per_node=1, cpus_per_task=1)
    found = estimate_of(sweep, cells, sets, one_gpu, 1, 1, probe=True)
    console = Console(width=240)
    with console.capture() as capture:
        console.print(render(found))
    assert "an unknown number of GPU hours" in capture.get()
    assert "no estimate for GPUs" in capture.get()
    assert "this machine has no GPU" in capture.get()
    with pytest.raises(ValueError, match="probe on a node like theirs"):
        check_budget(found, "1gpuh")


def test_progressive_resizing_has_records_of_its_own() -> None:
    sizes = [{"train.start_size_px": 0}, {"train.start_size_px": 128}, {"train.start_size_px": 128, "train.seed": 1}]
    configs = {str(number): with_values(RunConfig(), values) for number, values in enumerate(sizes)}
    assert [ids for ids, _ in probes_needed(configs)] == [["0"], ["1", "2"]]


def test_the_speed_of_a_probe_by_hand(manifest: Manifest) -> None:
    config = with_values(RunConfig(), {"train.batch_size": 16})  # 27 train, 3 val, 30 test: 2 steps
    measured = {
        "device": "cpu, 1 threads", "on_gpu": False, "threads": 1, "steps": 5, "step_s": 10.0,
        "eval_s_per_sample": 2.0, "save_s": 1.0, "load_s_per_sample": 0.5, "start_s": 3.0, "gpu_memory_gib": 0.0,
        "host_memory_gib": 1.5,
    }  # fmt: skip
    speed = speed_from_probe(measured, config, manifest, replace(CPU, tasks_per_node=2))
    assert speed.epoch == EpochTime(train_s=2 * 10, beside_s=3 * 1.0 + 1)
    assert speed.rest_s == 3 + 30 * 0.5 + 3 * 1.0 + 30 * 1.0
    assert "as one of 2 processes" in speed.source


def test_a_partial_epoch_gives_the_time_of_a_step(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.budget_steps": [3]})
    save_sweep(sweep)
    (trial,) = sweep.trials
    finish(trial, cells[trial.id].config, manifest, epoch_s=1.0)
    rows = [{"epoch": 1, "step": 2, "perf/seconds": 50.0}, {"epoch": 2, "step": 3, "perf/seconds": 10.0}]
    write_metrics(rows, trial.folder)
    (record,) = read_records(tmp_path / "runs")
    assert record.step_s == 10.0


def test_a_record_counts_for_the_same_kind_of_trial_alone(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    """The kind is the model, the shard set, the processes and the threads."""
    _, config, record = recorded(pet_shards, manifest, tmp_path)
    assert speed_by_records(config, manifest, CPU, [record]).source.startswith("records of 1 trial")
    others = {"key": record.key[1:], "manifest_hash": "0" * 16, "processes": 2, "threads": 3}
    for name, value in others.items():
        with pytest.raises(LookupError, match="no records of trials like these"):
            speed_by_records(config, manifest, CPU, [replace(record, **{name: value})])
    wide = with_values(config, {"model.width": config.model.width * 2})
    with pytest.raises(LookupError):
        speed_by_records(wide, manifest, CPU, [record])


@pytest.mark.parametrize(
    ("cluster", "gpus", "counts"), [("slurm", 2, (2, 0)), ("slurm", 0, (1, 5)), ("local", 2, None), ("local", 0, None)]
)
def test_an_unfinished_trial_counts_with_what_its_jobs_ask_for(
    pet_shards: Path, manifest: Manifest, tmp_path: Path, cluster: str, gpus: int, counts: tuple[int, int] | None
) -> None:
    """On this machine it may have run with or without a GPU."""
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0]})
    save_sweep(sweep)
    (trial,) = sweep.trials
    finish(trial, cells[trial.id].config, manifest, epoch_s=10.0)
    (trial.folder / "result.json").unlink()
    launch = {"cluster": cluster, "resources": {"gpus_per_node": gpus, "cpus_per_task": 5}}
    (sweep.folder / "launch.json").write_text(json.dumps(launch))
    assert [(record.processes, record.threads) for record in read_records(tmp_path / "runs")] == [counts] * bool(counts)


def test_a_trial_that_cannot_be_read_does_not_hide_the_others(
    pet_shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    sweep, cells = plan(pet_shards, tmp_path / "runs" / "lab", {"train.seed": [0, 1, 2, 3]})
    save_sweep(sweep)
    for trial in sweep.trials:
        finish(trial, cells[trial.id].config, manifest, epoch_s=10.0)
    cut, other, empty, _ = sorted(sweep.trials, key=lambda trial: trial.id)
    (cut.folder / "config.json").write_text("{")
    (other.folder / "result.json").write_text("[]")
    (empty.folder / "metrics.jsonl").unlink()
    assert len(read_records(tmp_path / "runs")) == 1


@pytest.mark.parametrize(
    ("gpus", "seen", "timeout_s", "hidden"),
    [
        (0, 0, speeds.PROBE_TIMEOUT_S, True),
        (0, 2, speeds.PROBE_TIMEOUT_S, True),
        (1, 2, speeds.PROBE_TIMEOUT_S, False),
        (1, 0, speeds.FUTILE_TIMEOUT_S, False),  # its speed is for a GPU that this host has not
    ],
)
def test_a_probe_gets_the_time_and_the_gpus_that_it_can_use(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, gpus: int, seen: int, timeout_s: float, hidden: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> None:
        asked.append(options)
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(speeds, "visible_gpus", lambda: seen)
    monkeypatch.setattr(speeds.subprocess, "run", run)
    with pytest.raises(LookupError, match=f"the probe did not end in {timeout_s:.0f} s"):
        speeds.speed_by_probe(RunConfig(), manifest, replace(CPU, gpus_per_node=gpus))
    assert asked[0]["timeout"] == timeout_s
    assert asked[0]["env"].get("CUDA_VISIBLE_DEVICES") == ("" if hidden else None)
