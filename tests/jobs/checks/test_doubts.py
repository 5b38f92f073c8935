"""What the doctor doubts of splits and of configs, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.checks import data as checks
from jobs.checks.data import (
    _batch_doubts,
    _check_splits,
    _precision_doubts,
    _size_doubts,
    _trial_doubts,
    check_config,
    check_mixing,
    listed,
    merged,
)
from jobs.checks.setup import Command, Finding, NotChecked, Setup
from jobs.design.expansion import expand
from jobs.design.spec import Spec
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.data.store import open_store
from shards.manifest import load_manifest, save_manifest
from slurm.resources import Resources


@pytest.mark.parametrize(
    ("count", "words"), [(0, ""), (1, "0"), (3, "0; 1; 2"), (4, "0; 1; 2; and 1 more"), (9, "0; 1; 2; and 6 more")]
)
def test_the_first_three_problems_are_named(count: int, words: str) -> None:
    assert listed([str(number) for number in range(count)]) == words


def test_of_several_sets_the_worst_counts_and_each_detail_is_told_once() -> None:
    findings = [Finding("ok", "x", "a"), Finding("FAIL", "x", "b", "mend b"), Finding("warn", "x", "a", "mend a")]
    assert merged(findings) == Finding("FAIL", "x", "a; b", "mend b")
    assert merged([findings[0], findings[2]]) == Finding("warn", "x", "a", "mend a")


@pytest.mark.parametrize(
    ("kept", "test", "status", "detail"),
    [
        (["train", "test"], True, "FAIL", "no split val (there are 27 train, 30 test)"),
        (["test"], True, "FAIL", "no split train and val (there are 30 test)"),
        (["train", "val"], True, "warn", "27 train, 3 val: no split test"),
        (
            ["train", "val"], False, "warn",
            "27 train, 3 val; no key and no picture in two of them; nobody has looked for near-identical ones",
        ),
    ],
)  # fmt: skip
def test_splits_that_a_sweep_needs(copied: Path, kept: list[str], test: bool, status: str, detail: str) -> None:
    manifest = load_manifest(copied)
    splits = {name: split for name, split in manifest.splits.items() if name in kept}
    shards = tuple(shard for shard in manifest.shards if shard.split in kept)
    save_manifest(replace(manifest, splits=splits, shards=shards), copied)
    store = open_store(str(copied))
    try:
        finding = _check_splits(store, test)
    finally:
        store.close()
    assert (finding.status, finding.detail) == (status, detail)


def config_of(**values: Any) -> RunConfig:
    return with_values(RunConfig(), {name.replace("__", "."): value for name, value in values.items()})


@pytest.mark.parametrize(
    ("batch", "parts", "world_size", "status", "detail"),
    [
        (8, 1, 8, "", ""),
        (7, 1, 8, "FAIL", "train.batch_size = 7 is less than 8 processes"),
        (8, 2, 4, "", ""),
        (8, 2, 8, "warn", "train.batch_size = 8 is shared unevenly by 8 processes x 2 micro-batches"),
        (8, 0, 4, "", ""),  # a divisor of the batch, settled by the device's memory
        (9, 0, 4, "warn", "train.batch_size = 9 is shared unevenly by 4 processes x 1 micro-batches"),
    ],
)
def test_a_batch_is_shared_out(batch: int, parts: int, world_size: int, status: str, detail: str) -> None:
    """Said once, however many cells have it."""
    configs = [config_of(train__batch_size=batch, train__accumulation_steps=parts)] * 2
    found = list(_batch_doubts([config_of(train__batch_size=world_size * 16), *configs], world_size))
    assert [(one.status, one.detail) for one in found] == ([(status, detail)] if status else [])


@pytest.mark.parametrize(
    ("precision", "gpu", "bf16", "status"),
    [
        ("no", False, False, ""), ("bf16", False, False, ""), ("fp16", False, False, "warn"),
        ("fp16", True, False, ""), ("bf16", True, True, ""), ("bf16", True, False, "FAIL"), ("no", True, False, ""),
    ],
)  # fmt: skip
def test_a_precision_that_a_device_lacks(
    monkeypatch: pytest.MonkeyPatch, precision: str, gpu: bool, bf16: bool, status: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    configs = [config_of(train__mixed_precision="no"), config_of(train__mixed_precision=precision)]
    assert [one.status for one in _precision_doubts(configs)] == ([status] if status else [])


class Sets:
    """The shard sets of a setup: pictures packed at some size, and a hash; None cannot be read."""

    def __init__(self, **sets: tuple[int, str] | None) -> None:
        self.sets = sets

    def store_of(self, config: RunConfig) -> Any:
        found = self.sets[config.data.shards]
        if found is None:
            raise NotChecked("shards", "not there")
        packer = {"image_size_px": found[0]} if found[0] else {}
        return SimpleNamespace(manifest=SimpleNamespace(packer=packer, hash=found[1]))


def sized(size: object, fit: str = "squash", shards: str = "a") -> RunConfig:
    return config_of(data__image_size_px=size, data__fit=fit, data__shards=shards)


@pytest.mark.parametrize(
    ("configs", "details"),
    [
        ([sized(64)], []),
        ([sized(96)], ["pictures packed at 64 px would be enlarged to data.image_size_px = 96"]),
        ([sized("32x128"), sized(96)], ["pictures packed at 64 px would be enlarged to data.image_size_px = 128"]),
        ([sized(960, shards="own")], []),  # as they are
        ([sized(960, "letterbox", "own")], []),
        (
            [sized(64, "letterbox"), sized(64, "letterbox")],
            ["pictures were squashed to 64 px when they were packed, which data.fit = letterbox cannot undo"],
        ),
        ([sized(96), sized(96, shards="gone")], []),
    ],
)
def test_pictures_that_were_packed_too_small_or_out_of_shape(configs: list[RunConfig], details: list[str]) -> None:
    found = list(_size_doubts(configs, Sets(a=(64, "h"), own=(0, "i"), gone=None)))  # type: ignore[arg-type]
    assert [(one.status, one.detail) for one in found] == [("warn", detail) for detail in details]


@pytest.mark.parametrize(
    ("shards", "detail"),
    [
        (["a", "b"], []),
        (["a", "copy"], ["2 cells are only 1 trials"]),
        (["a", "a"], ["2 cells are only 1 trials"]),
        (["a", "gone"], []),  # whether it is a copy is not known
    ],
)
def test_cells_that_are_one_trial(shards: list[str], detail: list[str]) -> None:
    sets = Sets(a=(64, "h"), copy=(64, "h"), b=(64, "i"), gone=None)
    found = list(_trial_doubts([config_of(data__shards=one) for one in shards], sets))  # type: ignore[arg-type]
    assert [one.detail for one in found] == detail


def test_what_fails_hides_what_is_only_doubtful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(Command(Resources(nodes=2, gpus_per_node=2)), tmp_path)
    setup.cells = expand(Spec("lab", {"train.seed": [0, 1]}, {}))
    doubts = [Finding("warn", "config", "a", "mend a"), Finding("FAIL", "config", "b", "mend b")]
    for name in ("_batch_doubts", "_precision_doubts", "_trial_doubts"):
        monkeypatch.setattr(checks, name, lambda *_: [])
    for found, told in (
        ([], ("ok", "2 cells, 4 processes each", "")),
        (doubts[:1] * 2, ("warn", "a; a (2 cells, 4 processes each)", "mend a; mend a")),
        (doubts, ("FAIL", "b (2 cells, 4 processes each)", "mend b")),
    ):
        monkeypatch.setattr(checks, "_size_doubts", lambda *_, found=found: found)
        finding = check_config(setup)
        assert (finding.status, finding.detail, finding.advice) == told
    setup = Setup(Command(Resources(gpus_per_node=0)), tmp_path)
    setup.cells = expand(Spec("lab", {}, {}))
    monkeypatch.setattr(checks, "_size_doubts", lambda *_: [])
    assert check_config(setup).detail == "1 cells, 1 process each"


def test_mixing_is_judged_for_each_set_window_and_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that is poor is told."""
    asked: list[tuple[object, ...]] = []

    class Poor(str):
        is_poor = True

    def mixing_of(store: object, *how: object) -> Poor | None:
        asked.append((store, *how))
        return Poor("poor") if how[1] == 8 else None

    setup = Setup(Command(), tmp_path)
    axes = {"data.shuffle_window_shards": [1, 2], "train.batch_size": [16, 8], "train.seed": [3, 4]}
    setup.cells = expand(Spec("lab", axes, {}))
    monkeypatch.setattr(Setup, "store_of", lambda setup, config: config.data.shards)
    monkeypatch.setattr(checks, "mixing_of", mixing_of)
    assert check_mixing(setup).detail == "poor"
    shards = RunConfig().data.shards
    assert asked == [(shards, 1, 16, 3), (shards, 1, 8, 3), (shards, 2, 16, 3), (shards, 2, 8, 3)]
