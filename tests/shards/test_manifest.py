"""Laws of the contract."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.files import write_whole
from shards.index import Member, Sample, index_name, load_index, render_index, save_index
from shards.manifest import MANIFEST_NAME, Manifest, Shard, Source, Split, load_manifest, manifest_hash, split_of_keys

keys = st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True)
members = st.builds(Member, *[st.integers(0, 2**40)] * 2, st.integers(0, 2**32 - 1))
samples = st.lists(st.builds(Sample, keys, members, members, members), max_size=5)


@given(samples)
def test_index_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Sample]) -> None:
    folder = tmp_path_factory.mktemp("index")
    sha256 = save_index(rows, folder, "train-000000.tar")
    assert load_index(folder, "train-000000.tar") == rows
    assert len(sha256) == 64
    assert [path.name for path in folder.iterdir()] == [index_name("train-000000.tar")]


@pytest.mark.parametrize(
    "content", ["", "[", "{}x", "[1]", '[["a",1,2,3]]', '[["a",1,2,3,4,5,6,7,8,-9]]', "[[1,1,2,3,4,5,6,7,8,9]]", "null"]
)
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "train-000000.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"train-000000\.index\.json is damaged"):
        load_index(tmp_path, "train-000000.tar")


@given(st.lists(keys, unique=True), st.randoms())
def test_the_key_xor_ignores_order_but_no_key(names: list[str], random) -> None:
    shuffled = random.sample(names, len(names))
    assert split_of_keys(shuffled) == split_of_keys(names)
    if names:
        assert split_of_keys(names[1:]) != split_of_keys(names)
        assert split_of_keys([*names, names[0], names[0]]) != split_of_keys(names)


def test_members_come_in_the_order_of_the_tar() -> None:
    sample = Sample("a", Member(1, 2, 3), Member(4, 5, 6), Member(7, 8, 9))
    assert [name for name, _ in sample.members()] == ["a.jpg", "a.png", "a.json"]
    assert render_index([sample]) == '[\n["a",1,2,3,4,5,6,7,8,9]\n]\n'


def test_the_hash_covers_every_shard(packed: Path) -> None:
    manifest = load_manifest(packed)
    first, *rest = manifest.shards
    for change in ({"sha256": "0" * 64}, {"index_sha256": "0" * 64}, {"num_samples": 1}):
        assert manifest_hash(replace(manifest, shards=(replace(first, **change), *rest))) != manifest.hash


def test_an_altered_manifest_is_refused(shard_set: Path) -> None:
    path = shard_set / MANIFEST_NAME
    content = json.loads(path.read_text())
    content["packer"]["seed"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"manifest\.json was altered"):
        load_manifest(shard_set)


def test_a_file_that_does_not_fit_is_named_and_leaves_nothing(small_disk) -> None:
    folder = small_disk(16 * 1024)
    write_whole(folder / "note.json", "before")
    with pytest.raises(OSError, match=r"No space left on device: '.*/note\.json'"):
        write_whole(folder / "note.json", "x" * 64 * 1024)
    assert [path.name for path in folder.iterdir()] == ["note.json"]
    assert (folder / "note.json").read_text() == "before"


def test_a_split_without_samples_is_named_with_its_set_and_what_to_do(packed: Path) -> None:
    manifest = load_manifest(packed)
    manifest.require_samples(("train", "val", "test"), "here")
    less = replace(manifest, splits={"train": manifest.splits["train"], "val": Split(0, "0" * 16)})
    for name in ("val", "test"):
        with pytest.raises(
            ValueError, match=rf"^here has no samples in its split '{name}' \(samples: .* train, 0 val\)"
        ):
            less.require_samples(("train", name), "here")
    with pytest.raises(ValueError, match="it has none at all"):
        replace(manifest, splits={}).of_split("val")


def test_the_shards_of_a_split_are_its_own_in_order() -> None:
    splits = {name: Split(1, "0" * 16) for name in ("train", "val", "test")}
    names = [f"{split}-00000{number}.tar" for split in splits for number in range(2)]
    shards = tuple(Shard(name, name.partition("-")[0], 1, 1, "", "") for name in names)
    manifest = Manifest(Source("drawn", "", {}), {}, splits, shards)
    for split in splits:
        assert [shard.name for shard in manifest.of_split(split)] == [f"{split}-00000{number}.tar" for number in (0, 1)]
    with pytest.raises(ValueError, match="has no split 'dev'"):
        manifest.of_split("dev")
