"""Which pictures the words mean, and what their outputs are called."""

from __future__ import annotations

import os
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


def test_a_picture_within_another_file_is_not_turned(tmp_path: Path) -> None:
    """The masks of a shard set belong to its pixels as they are stored; a file by itself is shown as its EXIF says."""
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() * 2)
    assert Input("a/turned", str(path)).read().shape == (8, 4, 3)
    for offset in (0, size):
        within = Input("a/turned", str(path), offset, size)
        assert within.read().shape == (4, 8, 3)
        assert within.shown == f"{path}:turned"
    assert Input("a/turned", str(path)).shown == str(path)


def test_a_tar_that_is_no_file_is_a_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tar")
    with pytest.raises(ValueError, match=r"not a regular file$"):
        Input("a", str(tmp_path / "fifo.tar"), 512, 99).read()


def test_what_lies_in_the_outputs_folder_is_no_input_of_a_pattern(photos: Path, tmp_path: Path) -> None:
    """By a link too; folders that match a pattern are none."""
    (tmp_path / "link").symlink_to(photos / "a")
    assert names([f"{photos}/*/*/*.*"], tmp_path / "link") == ["b/x/2"]
    assert names([f"{photos}/**"], tmp_path / "link") == ["3", "b/x/2"]
    assert names([photos / "a" / "x" / "1.png"], photos / "a") == ["1"]  # named itself


def test_each_place_counts_once_and_two_places_are_two_pictures(photos: Path, tmp_path: Path) -> None:
    (photos / "link.png").symlink_to(photos / "a" / "x" / "1.png")
    assert names([photos / "a" / "x" / "1.png", photos / "link.png"], tmp_path) == ["1"]
    with pytest.raises(ValueError, match=r"a/x/1\.png and .*a/y/1\.png would both be called 1: name a folder above"):
        names([photos / "a" / "x" / "1.png", photos / "a" / "y" / "1.png"], tmp_path)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("x.tar.gz", "x.tar"),
        ("/", "root"),
        ("/../x.png", "x"),
        ("a//b.png", "a/b"),
        (" a.png", " a"),
        ("noext", "noext"),
    ],
)
def test_names_of_odd_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert names(["-"], tmp_path / "out", [f"{line}\n"]) == [name]
