"""Which files of a run become artifacts: those of the folder itself, once the run is finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from petseg.run_folder.layout import CONFIG_NAME, PER_IMAGE_NAME, RESULT_NAME, VAL_MASKS_NAME
from petseg.tracking.artifacts import MAX_NAME, Artifact, find_artifacts, find_manifest
from shards.manifest import MANIFEST_NAME, load_manifest


@pytest.fixture
def finished(pet_shards: Path, tmp_path: Path) -> Path:
    """A run's folder with the copy of its set's manifest."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(pet_shards / MANIFEST_NAME, folder)
    write_config(folder, load_manifest(pet_shards).hash)
    for name in (RESULT_NAME, PER_IMAGE_NAME, VAL_MASKS_NAME):
        (folder / name).touch()
    return folder


def write_config(folder: Path, manifest_hash: str) -> None:
    content = {"trial_id": "0123456789", "identity": {"manifest_hash": manifest_hash}, "config": {}}
    (folder / CONFIG_NAME).write_text(json.dumps(content))


def test_a_finished_run_has_its_manifest_and_its_predictions(finished: Path, pet_shards: Path) -> None:
    manifest_hash = load_manifest(pet_shards).hash
    predictions = {name: str(finished / name) for name in (PER_IMAGE_NAME, VAL_MASKS_NAME)}
    expected = [
        Artifact(
            f"shards-{manifest_hash[:16]}", "dataset", {MANIFEST_NAME: str(finished / MANIFEST_NAME)},
            {"data_hash": manifest_hash},
        ),
        Artifact("predictions-run1", "predictions", predictions),
    ]  # fmt: skip
    assert find_artifacts(finished, "run1", "small") == expected
    assert find_artifacts(finished, "run1", "all") == expected  # there is no checkpoint
    assert find_artifacts(finished, "run1", "none") == []
    (finished / RESULT_NAME).unlink()
    assert find_artifacts(finished, "run1", "small") == []


def test_the_manifest_of_another_set_and_a_damaged_one_are_none(finished: Path) -> None:
    assert find_manifest(finished) == finished / MANIFEST_NAME
    write_config(finished, "0" * 64)
    assert find_manifest(finished) is None
    (finished / MANIFEST_NAME).write_text("{")
    assert find_manifest(finished) is None
    assert [one.type for one in find_artifacts(finished, "run1", "small")] == ["predictions"]


def test_links_are_not_followed(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    (finished / PER_IMAGE_NAME).unlink()
    (finished / PER_IMAGE_NAME).symlink_to(tmp_path / "secret")
    (found,) = [one for one in find_artifacts(finished, "run1", "small") if one.type == "predictions"]
    assert list(found.files) == [VAL_MASKS_NAME]


def test_a_long_id_keeps_its_end(finished: Path) -> None:
    """It is there that the ids of runs of one sweep differ."""
    long_id = "x" * 200 + "end"
    name = find_artifacts(finished, long_id, "small")[1].name
    assert len(name) == MAX_NAME
    assert name.startswith("predictions-x")
    assert name.endswith("xend")
