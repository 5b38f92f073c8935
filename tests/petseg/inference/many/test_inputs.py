"""Which pictures the words mean, and what their outputs are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from petseg.inference.many import inputs
from petseg.inference.many.inputs import Input, list_inputs
from shards.index import load_index
from shards.manifest import load_manifest


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a/x/1.png", "a/y/1.png", "b/x/2.JPG", "3.jpeg", ".hidden/4.png", "a/.5.png", "a/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".txt"):
            (folder / name).write_text("no picture")
        else:
            Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def names(words: Sequence[object], out: Path, lines: Sequence[str] = ()) -> list[str]:
    return [one.name for one in list_inputs([str(word) for word in words], lines, out)]


def test_a_folder_means_its_pictures_below_and_nothing_hidden(photos: Path, tmp_path: Path) -> None:
    assert names([photos], tmp_path / "out") == ["3", "a/x/1", "a/y/1", "b/x/2"]
    assert names([photos], photos / "a") == ["3", "b/x/2"]  # what is in the folder of the outputs is left out
    assert names([photos / "3.jpeg"], tmp_path) == ["3"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no pictures there \(.*\.png"):
        names([tmp_path / "empty"], tmp_path / "out")


def test_a_pattern_names_outputs_from_its_first_wildcard_on(photos: Path, tmp_path: Path) -> None:
    assert names([f"{photos}/*/x/*.*"], tmp_path / "out") == ["a/x/1", "b/x/2"]
    assert names([f"{photos}/a/*/1.png"], tmp_path / "out") == ["x/1", "y/1"]
    assert names([f"{photos}/a/x/?.png"], tmp_path / "out") == ["1"]
    assert names([f"{photos}/**/x/*.*"], photos / "a") == ["b/x/2"]
    with pytest.raises(ValueError, match="no pictures there"):
        names([f"{photos}/*.gif"], tmp_path / "out")


def test_a_folder_behind_the_first_wildcard_is_part_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "photos" / "x" / "x").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "x" / "x" / "1.png")
    assert names([f"{tmp_path}/photos/*/x/*.png"], tmp_path / "out") == ["x/x/1"]


def test_a_listed_picture_has_the_name_of_its_path(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos / "a")
    lines = ["x/1.png\n", "./y/1.png\n", "\n", f"{photos}/3.jpeg\n", "../b/x/2.JPG\n"]
    assert names(["-"], tmp_path / "out", lines) == [
        "x/1",
        "y/1",
        f"{photos}/3".lstrip("/"),
        f"{photos}/b/x/2".lstrip("/"),
    ]
    assert names(["-"], tmp_path / "out", []) == []


def test_a_tar_and_a_set_mean_the_pictures_of_their_indices(pet_shards: Path, tmp_path: Path) -> None:
    shards = [shard.name for shard in load_manifest(pet_shards).shards]
    keys = {shard: [sample.key for sample in load_index(pet_shards, shard)] for shard in shards}
    found = list_inputs([str(pet_shards / shards[0])], (), tmp_path)
    assert [one.name for one in found] == keys[shards[0]]
    assert found[0].shown == f"{pet_shards / shards[0]}:{found[0].name}"
    assert found[0].read().shape == (64, 64, 3)
    assert names([pet_shards], tmp_path) == [key for shard in shards for key in keys[shard]]


def test_a_picture_of_a_tar_that_cannot_be_read_is_a_line(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = list_inputs([str(pet_shards / load_manifest(pet_shards).shards[0].name)], (), tmp_path)[0]
    with pytest.raises(ValueError, match=r"^No such file or directory$"):
        Input(one.name, str(tmp_path / "gone.tar"), one.offset, one.num_bytes).read()
    monkeypatch.setattr(inputs, "MAX_FILE_BYTES", one.num_bytes)
    assert one.read().shape == (64, 64, 3)
    monkeypatch.setattr(inputs, "MAX_FILE_BYTES", one.num_bytes - 1)
    with pytest.raises(ValueError, match=rf"^larger than {one.num_bytes - 1:,} bytes$"):
        one.read()
