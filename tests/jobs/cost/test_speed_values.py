"""The speed of a trial by hand: from records that are alike, and from what a probe has measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.cost import memory, speeds
from jobs.cost.memory import NOTE, PATIENCE_S, predict_gpu_memory
from jobs.cost.speeds import (
    Record,
    TrialSpeed,
    probes_needed,
    speed_by_probe,
    speed_by_records,
    speed_from_probe,
    speed_key_of,
    threads_of,
)
from jobs.design.shard_sets import ShardSets
from petseg.config import RunConfig
from petseg.config.values import config_to_dict, flatten, identity, with_values
from petseg.run.length import EpochTime
from shards.manifest import Manifest
from slurm.resources import Resources

CPU = Resources(gpus_per_node=0, cpus_per_task=2)
GPU = Resources(gpus_per_node=1, cpus_per_task=2)
CONFIG = with_values(RunConfig(), {"train.batch_size": 9, "augment.policy": "elastic"})  # 27 pictures: 3 steps


@pytest.fixture
def record(manifest: Manifest) -> Record:
    """A record of a trial that is alike but for its augmentation."""
    key = speed_key_of(flatten(identity(CONFIG, manifest.hash)))
    return Record(key, "none", manifest.hash, 1, 2, 4.0, 7.0)


def by_records(manifest: Manifest, *records: Record, resources: Resources = CPU) -> TrialSpeed:
    return speed_by_records(CONFIG, manifest, resources, records)


def test_records_of_the_same_augmentation_go_before_others(manifest: Manifest, record: Record) -> None:
    same = replace(record, policy="elastic", step_s=2.0, beside_epoch_s=1.0)
    speed = by_records(manifest, record, same, replace(same, step_s=4.0, beside_epoch_s=3.0))
    assert speed == TrialSpeed(EpochTime(3 * 3.0, 2.0), 0.0, False, "records of 2 trials")
    assert by_records(manifest, record) == TrialSpeed(
        EpochTime(3 * 4.0, 7.0), 0.0, False, "records of 1 trial with another augmentation"
    )


def test_validation_that_no_record_knows_is_a_third_of_training_per_picture(manifest: Manifest, record: Record) -> None:
    same = replace(record, policy="elastic", beside_epoch_s=None)
    speed = by_records(manifest, same)
    assert speed.epoch == EpochTime(12.0, pytest.approx(12.0 * 3 / 27 / 3))
    assert speed.source == "records of 1 trial, validation estimated as a third of training per picture"
    assert by_records(manifest, same, replace(same, beside_epoch_s=5.0)).epoch.beside_s == 5.0
    alone = replace(manifest, splits={"train": manifest.splits["train"]})
    assert by_records(alone, same).epoch.beside_s == 0.0


def test_a_record_on_a_gpu_has_no_threads(manifest: Manifest, record: Record) -> None:
    on_gpu = replace(record, policy="elastic", threads=0)
    speed = by_records(manifest, on_gpu, resources=GPU)
    assert (speed.on_gpu, speed.source) == (True, "records of 1 trial")
    assert by_records(manifest, replace(on_gpu, threads=None)).source == (
        "records of 1 trial on an unknown number of threads"
    )
    for other, resources in ((replace(on_gpu, threads=2), GPU), (on_gpu, CPU), (replace(on_gpu, threads=None), GPU)):
        with pytest.raises(LookupError, match="no records of trials like these"):
            by_records(manifest, other, resources=resources)
    assert (threads_of(CPU), threads_of(GPU)) == (2, 0)


def test_what_makes_a_trial_slow_is_in_its_key_and_nothing_else() -> None:
    flat = flatten(config_to_dict(RunConfig()))
    names = [name for name, _ in speed_key_of(flat)]
    assert names == sorted(names)
    assert {"model.arch", "model.width", "optim.name", "data.image_size_px", "train.batch_size"} <= set(names)
    assert not {"model.init", "train.seed", "optim.lr", "augment.policy", "data.shards", "train.epochs"} & set(names)


PROBED = {
    "device": "cpu", "on_gpu": False, "threads": 2, "steps": 5, "step_s": 2.0, "eval_s_per_sample": 4.0, "save_s": 1.0,
    "load_s_per_sample": 0.5, "start_s": 3.0, "gpu_memory_gib": 0.0, "host_memory_gib": 1.5,
}  # fmt: skip


def test_a_probe_knows_validation_test_and_start(manifest: Manifest) -> None:
    config = with_values(CONFIG, {"train.test": True})
    speed = speed_from_probe(PROBED, config, manifest, CPU)
    rest_s = 3.0 + 0.5 * (27 + 3) + 3 * 4.0 + 30 * 4.0
    assert speed == TrialSpeed(EpochTime(3 * 2.0, 3 * 4.0 + 1.0), rest_s, False, "a probe of 5 steps on cpu", 1.5)
    untested = speed_from_probe(PROBED, with_values(CONFIG, {"train.test": False}), manifest, CPU)
    assert untested.rest_s == rest_s - 30 * 4.0
    alone = replace(manifest, splits={"train": manifest.splits["train"]})
    assert speed_from_probe(PROBED, config, alone, CPU).epoch.beside_s == 1.0
    on_gpu = speed_from_probe({**PROBED, "on_gpu": True, "gpu_memory_gib": 2.5}, config, manifest, GPU)
    assert (on_gpu.on_gpu, on_gpu.gpu_memory_gib) == (True, 2.5)
    assert TrialSpeed(EpochTime(10.0, 1.0), 5.0, False, "").trial_s(2.5) == 5.0 + 25.0 + 3.0


def test_a_probe_is_a_process_with_a_share_of_the_machine(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, json.loads(options.pop("input")), options))
        assert Path(asked[-1][1]["folder"]).is_dir()
        return SimpleNamespace(stdout=f"a word of some library\n{json.dumps(PROBED)}\n")

    monkeypatch.setattr(speeds.subprocess, "run", run)
    monkeypatch.setattr(speeds.os, "sched_getaffinity", lambda pid: range(3))
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "1")
    two = replace(CPU, nodes=2, cpus_per_task=8)
    assert speed_by_probe(CONFIG, manifest, two) == speed_from_probe(PROBED, CONFIG, manifest, two)
    speed_by_probe(CONFIG, manifest, CPU)
    ((command, request, options), (_, second, _)) = asked
    assert command == [sys.executable, "-m", "jobs.cost.probe"]
    folder = request.pop("folder")
    assert request == {"config": json.loads(json.dumps(config_to_dict(CONFIG))), "processes": 2, "threads": 3}
    assert second["threads"] == 2
    assert not Path(folder).exists()
    assert not {"RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & set(options["env"])
    assert (options["check"], options["text"], options["capture_output"]) == (True, True, True)


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("Traceback\n  File x\nshards.cause.ShardSetError: no set: a.b\n\n", "ShardSetError: no set: a.b"),
        ("ValueError: bad\n", "ValueError: bad"),
        ("", "exit code 7"),
    ],
)
def test_a_probe_that_fails_is_told_by_its_last_line(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, stderr: str, told: str
) -> None:
    def run(command: list[str], **options: Any) -> None:
        raise subprocess.CalledProcessError(7, command, "", stderr)

    monkeypatch.setattr(speeds.subprocess, "run", run)
    with pytest.raises(LookupError) as failed:
        speed_by_probe(CONFIG, manifest, CPU)
    assert str(failed.value) == f"the probe failed: {told}"


def test_one_probe_stands_for_trials_of_one_speed_and_for_the_dearest_augmentation() -> None:
    changes: dict[str, dict[str, Any]] = {
        "a": {"augment.policy": "none"}, "b": {"train.seed": 7}, "c": {"model.width": 8}, "d": {"data.shards": "other"},
        "e": {"augment.policy": "none", "optim.lr": 0.5},
    }  # fmt: skip
    configs = {name: with_values(CONFIG, values) for name, values in changes.items()}
    needed = list(probes_needed(configs))
    assert [ids for ids, _ in needed] == [["a", "b", "e"], ["c"], ["d"]]
    assert [config for _, config in needed] == [configs["b"], configs["c"], configs["d"]]


def predicted(
    monkeypatch: pytest.MonkeyPatch, sets: ShardSets, configs: Sequence[RunConfig], clock: Sequence[float] = ()
) -> tuple[dict[str, float], list[str], list[RunConfig]]:
    """What is predicted of these configs, a GiB for each channel of a model, and for which it was worked out."""
    worked: list[RunConfig] = []
    times = iter(clock)
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: next(times, 0.0)))
    monkeypatch.setattr(memory, "_peak_gib", lambda config, *rest: worked.append(config) or config.model.width)
    given = {str(number): config for number, config in enumerate(configs)}
    return *predict_gpu_memory(given, sets, GPU), worked


def of_sets(pet_shards: Path, **values: Any) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return with_values(RunConfig(), {"data.shards": str(pet_shards), "train.accumulation_steps": 1, **named})


def test_memory_is_predicted_once_for_trials_that_take_the_same(
    monkeypatch: pytest.MonkeyPatch, sets: ShardSets, pet_shards: Path
) -> None:
    same, wide = of_sets(pet_shards, train__seed=3), of_sets(pet_shards, model__width=8)
    decides = of_sets(pet_shards, train__accumulation_steps=0)  # fits its passes to the GPU
    found, notes, worked = predicted(monkeypatch, sets, [of_sets(pet_shards), same, wide, decides])
    width = RunConfig().model.width
    assert found == {"0": width, "1": width, "2": 8}
    assert (notes, len(worked)) == ([NOTE], 2)
    assert predict_gpu_memory({"0": same}, sets, CPU) == ({}, [])
    assert predicted(monkeypatch, sets, [decides])[:2] == ({}, [])


def test_a_prediction_ends_when_it_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, sets: ShardSets, pet_shards: Path
) -> None:
    configs = [of_sets(pet_shards, model__width=width) for width in (4, 8, 16)]
    found, notes, _ = predicted(monkeypatch, sets, configs, [0.0, PATIENCE_S, PATIENCE_S + 1])
    assert found == {"0": 4}
    assert notes == [NOTE, "GPU memory was predicted for 1 of 3 trials, to save time"]


def test_a_model_that_cannot_be_built_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, sets: ShardSets, pet_shards: Path
) -> None:
    configs = [of_sets(pet_shards, model__width=width) for width in (4, 8)]

    def peak(config: RunConfig, processes: int, num_classes: int) -> float:
        if config.model.width == 4:
            raise ValueError("cannot be built")
        return 2.5

    monkeypatch.setattr(memory, "_peak_gib", peak)
    assert predict_gpu_memory({"a": configs[0], "b": configs[1]}, sets, GPU) == ({"b": 2.5}, [NOTE])
