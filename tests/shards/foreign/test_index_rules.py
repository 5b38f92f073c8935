"""What a folder of foreign shards must be like, in which order they come, and what an index writes and removes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.command import Failure
from shards.foreign import index
from shards.foreign.index import ATTRIBUTION, ForeignConfig, index_folder
from shards.foreign.scan import LeftOut, Named, Scanned
from shards.index import Member, Sample, index_name, load_index
from shards.layout import Layout, foreign_layout
from shards.manifest import MANIFEST_NAME, THREE_VALUES, Source, load_manifest, split_of_keys

SUFFIX_RULE = "what follows the key's dot, in small letters, as seg.png"


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Scanned]:
    """What a scan finds in each tar, by name; by default one sample named after it."""
    found: dict[str, Scanned] = {}

    def scan(path: Path, layout: Layout) -> Scanned:
        sample = Sample(path.stem.replace(".", "_"), *(Member(512 * number, number, number) for number in (1, 2, 3)))
        by_default = Scanned(path.name, 1000 + len(path.name), path.name, (sample,), (path.stem,))
        return found.get(path.name, by_default)

    monkeypatch.setattr(index, "scan_tar", scan)
    return found


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_suffix": ""}, f"--image-suffix '': {SUFFIX_RULE}"),
        ({"image_suffix": "JPG"}, f"--image-suffix 'JPG': {SUFFIX_RULE}"),
        ({"mask_suffix": ".png"}, f"--mask-suffix '.png': {SUFFIX_RULE}"),
        ({"mask_suffix": "a/png"}, f"--mask-suffix 'a/png': {SUFFIX_RULE}"),
        ({"image_suffix": "png"}, "--image-suffix and --mask-suffix are both 'png'"),
    ],
)
def test_suffixes_are_what_follows_the_dot(options: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        ForeignConfig(**options)
    assert str(error.value) == said


@pytest.mark.parametrize(
    "change", [{"background": 1}, {"background": 256}, {"background": -1}, {"more": 9}],
    ids=["twice", "too large", "below zero", "a fourth"],
)  # fmt: skip
def test_values_are_three_different_bytes(change: dict[str, int]) -> None:
    values = THREE_VALUES | change
    given = " ".join(f"--trimap.{name} {value}" for name, value in values.items())
    with pytest.raises(ValueError, match=rf"^{given}: three different values from 0 to 255 are needed, as in "):
        ForeignConfig(values=values)
    limits = dict(zip(THREE_VALUES, (0, 255, 7), strict=True))
    assert ForeignConfig(values=limits).layout() == foreign_layout("jpg", "png", limits)


def test_values_are_those_that_have_names() -> None:
    with pytest.raises(ValueError, match=r"^--trimap\.a 1 --trimap\.b 2 --trimap\.c 3: three different values from 0"):
        ForeignConfig(values={"a": 1, "b": 2, "c": 3})


def test_a_packer_tells_how_the_tars_are_read() -> None:
    config = ForeignConfig("image.jpg", "seg.png", dict(reversed(THREE_VALUES.items())))
    assert config.packer() == {"foreign": True, "image_suffix": "image.jpg", "mask_suffix": "seg.png"}
    layout = config.layout()
    assert layout == Layout(("image.jpg",), ("seg.png",), THREE_VALUES, is_foreign=True)
    assert list(layout.mask_values) == list(THREE_VALUES)  # however they were given


def test_shards_come_split_by_split_and_by_name(folder: Path, scanned: dict[str, Scanned]) -> None:
    names = [
        "Training-1.tar",
        "train_0.tar",
        "valid.tar",
        "val-2.tar",
        "validation3.tar",
        "test.0.tar",
        "TESTING-9.tar",
    ]
    touch(folder, *names)
    indexed = index_folder(folder, ForeignConfig())
    manifest = load_manifest(folder)
    assert indexed.manifest == manifest
    assert [(shard.name, shard.split) for shard in manifest.shards] == [
        ("Training-1.tar", "train"), ("train_0.tar", "train"), ("val-2.tar", "val"), ("valid.tar", "val"),
        ("validation3.tar", "val"), ("TESTING-9.tar", "test"), ("test.0.tar", "test"),
    ]  # fmt: skip
    assert manifest.splits == {
        "train": split_of_keys(["Training-1", "train_0"]),
        "val": split_of_keys(["val-2", "valid", "validation3"]),
        "test": split_of_keys(["TESTING-9", "test_0"]),
    }
    assert manifest.source == Source("foreign", ATTRIBUTION, THREE_VALUES)
    first = manifest.shards[0]
    assert (first.num_samples, first.num_bytes, first.sha256) == (1, 1014, "Training-1.tar")
    assert [sample.key for sample in load_index(folder, "test.0.tar")] == ["test_0"]
    for split in ("train", "val", "test"):
        manifest = index_folder(folder, ForeignConfig(split=split)).manifest
        assert [(shard.name, shard.split) for shard in manifest.shards] == [(name, split) for name in sorted(names)]


@pytest.mark.parametrize("name", ["trainval-0.tar", "0-train.tar", "_train.tar", "dev.tar"])
def test_a_name_tells_its_split_by_its_first_word(folder: Path, scanned: dict[str, Scanned], name: str) -> None:
    touch(folder, "train-0.tar", name)
    with pytest.raises(ValueError, match=rf"^{folder / name}: the name does not tell its split: rename it to train-"):
        index_folder(folder, ForeignConfig())
    assert not (folder / MANIFEST_NAME).exists()


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tar.zst", "b.tgz", "b.tbz2", "b.txz", "b.tzst"])
def test_compressed_tars_are_refused_before_any_is_read(folder: Path, scanned: dict[str, Scanned], name: str) -> None:
    touch(folder, "train-0.tar", name, "c.tgz")
    with pytest.raises(
        ValueError, match=rf"^{folder / name} is compressed \(2 such files\): petseg reads by byte offset"
    ):
        index_folder(folder, ForeignConfig())


def test_what_was_indexed_before_gives_way(folder: Path, scanned: dict[str, Scanned]) -> None:
    touch(folder, "train-0.tar", "train-1.tar", "train-2.tar", "val-0.tar", "mine.index.json")
    index_folder(folder, ForeignConfig())
    for name in ("train-1.tar", "train-2.tar", index_name("train-2.tar")):
        (folder / name).unlink()
    index_folder(folder, ForeignConfig())
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "mine.index.json", "train-0.index.json", "train-0.tar", "val-0.index.json", "val-0.tar",
    ]  # fmt: skip


def test_there_is_never_a_manifest_without_its_indices(
    folder: Path, scanned: dict[str, Scanned], monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(folder, "train-0.tar", "val-0.tar")
    index_folder(folder, ForeignConfig())
    monkeypatch.setattr(index, "save_index", lambda samples, folder, name: os.kill(os.getpid(), 2))
    with pytest.raises(KeyboardInterrupt):
        index_folder(folder, ForeignConfig())
    assert not (folder / MANIFEST_NAME).exists()


def test_all_problems_and_all_that_is_left_out_are_added_up(folder: Path, scanned: dict[str, Scanned]) -> None:
    touch(folder, "train-0.tar", "train-1.tar", "val-0.tar")
    twin = Sample("twin", *(Member(512, 1, 1) for _ in range(3)))
    for number, name in enumerate(("train-0.tar", "val-0.tar")):
        scanned[name] = Scanned(name, 1, "", (twin,), (f"x{number}/twin",), LeftOut(samples=Named([name], 2)))
    scanned["train-1.tar"] = Scanned("train-1.tar", problems=Named(["broken", "cut"], 1200))
    with pytest.raises(Failure) as error:
        index_folder(folder, ForeignConfig())
    assert str(error.value) == (
        f"{folder} cannot be indexed, 1,201 problems:\n  key twin is there twice: x0/twin in train-0.tar and x1/twin "
        "in val-0.tar\n  broken\n  cut\n  and 1,198 more"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["train-0.tar", "train-1.tar", "val-0.tar"]
    del scanned["train-1.tar"]
    scanned["val-0.tar"] = Scanned("val-0.tar", 1, "", (Sample("b", twin.jpg, twin.png, twin.json),), ("b",),
                                   LeftOut(samples=Named(["other"], 1)))  # fmt: skip
    assert index_folder(folder, ForeignConfig()).left_out == LeftOut(samples=Named(["train-0.tar", "other"], 3))
    assert (folder / index_name("val-0.tar")).exists()


def test_where_no_tars_are_is_told(folder: Path) -> None:
    for where, said in (
        (folder / "nowhere", f"{folder / 'nowhere'} is not a folder: name the one with the .tar files"),
        (folder, f"{folder} has no .tar files to index"),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
            index_folder(where, ForeignConfig())
        assert str(error.value) == said
