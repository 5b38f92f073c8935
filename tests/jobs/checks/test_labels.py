"""The doctor's check of what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.checks.setup import Finding
from shards.pack import pack
from tests.scenes import Scenes

Doctor = Callable[..., dict[str, Finding]]


def test_pets_have_the_classes_of_the_target(ask: Doctor) -> None:
    finding = ask("labels")["labels"]
    assert finding.status == "ok"
    assert finding.detail == "pet: 2 classes (background, pet)"
    finding = ask("labels", "--set", "data.target=trimap", "--set", "train.class_weights=1,2")["labels"]
    assert finding.status == "FAIL"
    assert "or 3 numbers of 0 or more" in finding.detail
    assert "choose one of pet, trimap" in ask("labels", "--set", "data.target=dog")["labels"].detail


def test_faults_of_classes(ask: Doctor, tmp_path: Path) -> None:
    scenes = Scenes(tmp_path / "scenes")
    scenes.add_many()
    scenes.table.write_text(scenes.table.read_text() + '[[class]]\nname = "boat"\nvalues = [8]\n')
    pack(scenes.config(tmp_path / "set"))
    finding = ask("labels", shards=tmp_path / "set")["labels"]
    assert finding.status == "warn"
    assert "absent_class (1): classes never occur in train, as boat" in finding.detail
    assert "as_packed: 4 classes (road, tree, car, boat)" in finding.detail
    assert "remove or merge them" in finding.advice
    merging = tmp_path / "coarse.toml"
    merging.write_text('[classes]\nground = ["road"]\nthing = ["tree", "car", "bus"]\n')
    finding = ask("labels", "--set", f"data.target={merging}", shards=tmp_path / "set")["labels"]
    assert finding.status == "FAIL"
    assert "'bus' is no class of the shard set" in finding.detail


@pytest.mark.parametrize(
    ("axis", "words"),
    [("data.border=fg,bg", "data.border = 'bg': this shard set"), ("data.target=as_packed,dog", "dog")],
)
def test_every_value_of_an_axis_is_checked(ask: Doctor, tmp_path: Path, axis: str, words: str) -> None:
    scenes = Scenes(tmp_path / "scenes")
    scenes.add_many()
    pack(scenes.config(tmp_path / "set"))
    finding = ask("labels", "--axis", axis, shards=tmp_path / "set")["labels"]
    assert finding.status == "FAIL"
    assert words in finding.detail


@pytest.mark.slow
def test_small_runs_on_classes(ask: Doctor, tmp_path: Path) -> None:
    scenes = Scenes(tmp_path / "scenes")
    scenes.add_many()
    pack(scenes.config(tmp_path / "set"))
    flags = ("--set", "model.arch=unet", "--set", "augment.policy=elastic", "--set", "train.loss=ce_dice")
    found = ask("overfit,batchnorm,resume,folder", *flags, shards=tmp_path / "set")
    assert {name: finding.status for name, finding in found.items()} == dict.fromkeys(found, "ok"), found
