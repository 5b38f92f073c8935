"""Where a run that is started by hand keeps its files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from petseg.run_folder.single_run import parse_command
from shards.manifest import load_manifest, save_manifest


def folder_of(*flags: str) -> Path:
    return parse_command([*flags, "--model.width", "4"], None).folder()


def test_the_folder_follows_the_config_and_the_shard_set(pet_shards: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pet_shards, tmp_path / "set"))
    first = folder_of("--data.shards", str(pet_shards))
    assert first.parent == Path("runs/single")
    assert folder_of("--data.shards", str(other)).name == first.name  # a copy is the same set
    assert folder_of("--data.shards", str(other), "--train.seed", "1").name != first.name

    manifest = load_manifest(other)
    save_manifest(replace(manifest, source=replace(manifest.source, name="another")), other)
    assert load_manifest(other).hash != manifest.hash
    assert folder_of("--data.shards", str(other)).name != first.name


def test_a_given_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert folder_of("--data.shards", str(tmp_path / "none"), "--out", str(tmp_path / "run")) == tmp_path / "run"
