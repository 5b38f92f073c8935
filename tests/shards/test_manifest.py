"""Laws of the contract."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.cause import Cause, ShardSetError, cause_of
from shards.classes import ClassEntry, ClassTable
from shards.files import write_whole
from shards.index import NO_MEMBER, Member, Sample, index_name, load_index, render_index, save_index
from shards.manifest import (
    MANIFEST_NAME,
    THREE_VALUES,
    VALUES_KEY,
    Manifest,
    Shard,
    Source,
    Split,
    is_grouped,
    key_hash,
    load_manifest,
    manifest_hash,
    save_manifest,
    shard_name,
    split_of_keys,
)

SMALL = Manifest(
    source=Source("drawn", "me"),
    packer={"seed": 1},
    splits={"train": Split(1, "0" * 16)},
    shards=(Shard("train-000000.tar", "train", 1, 2, "a", "b"),),
)
WITH_CLASSES = replace(
    SMALL, source=Source("drawn", "me", {}), format_version=2, classes=ClassTable((ClassEntry("a", 0, (1, 2, 3)),))
)

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


def test_hashes_and_names_are_those_of_the_sets_that_are_there() -> None:
    """Another value would make every set that was ever packed a damaged one."""
    assert key_hash("aachen_1") == 0x8B59369ECBAC025B
    assert split_of_keys(["aachen_1"]) == Split(1, "8b59369ecbac025b")
    assert split_of_keys([]) == Split(0, "0" * 16)
    assert (shard_name("val", 12), index_name("val-000012.tar")) == ("val-000012.tar", "val-000012.index.json")
    assert manifest_hash(SMALL) == "0547703436f17985440b1bce7da48b5080c2b10f52ca7cfe12db37457301ea48"
    assert manifest_hash(WITH_CLASSES) == "66c11d4af6eea19661b7b5196f70e2248bf50f847ba1c8fb41fa27a2377bf040"


@pytest.mark.parametrize("manifest", [SMALL, WITH_CLASSES], ids=["values", "classes"])
def test_a_manifest_comes_back_with_its_hash(tmp_path: Path, manifest: Manifest) -> None:
    saved = save_manifest(manifest, tmp_path)
    assert saved == replace(manifest, hash=manifest_hash(manifest))
    assert load_manifest(tmp_path) == load_manifest(str(tmp_path)) == saved
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert ("classes" in content, VALUES_KEY in content["source"]) == (bool(manifest.classes), not manifest.classes)


def test_the_values_of_masks_are_those_of_the_table_where_there_is_one() -> None:
    assert SMALL.mask_values == THREE_VALUES
    assert WITH_CLASSES.mask_values == {"a": 0, "ignored": 255}
    assert replace(SMALL, splits={"train": Split(1200, ""), "val": Split(3, "")}).counts == "1,200 train, 3 val"


@pytest.mark.parametrize(
    ("packer", "grouped"),
    [
        ({"pairs": {"group_by": "v."}}, True), ({"coco": {"group_by": "v."}}, True),
        ({"pairs": {"group_by": ""}}, False), ({"coco": {}}, False), ({"pairs": None}, False), ({}, False),
    ],
)  # fmt: skip
def test_a_grouped_set_says_so(packer: dict, grouped: bool) -> None:
    assert is_grouped(replace(SMALL, packer=packer)) is grouped


def test_a_sample_without_facts_has_two_members() -> None:
    sample = Sample("a", Member(512, 2, 3), Member(4, 5, 6), NO_MEMBER)
    assert sample.members() == (("a.jpg", sample.jpg), ("a.png", sample.png))


def refusal(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """What is said of a small manifest with a change, less its path."""
    save_manifest(SMALL, folder)
    content = json.loads((folder / MANIFEST_NAME).read_text())
    change(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(ShardSetError) as error:
        load_manifest(folder)
    assert cause_of(error.value) is Cause.DATA
    return str(error.value).removeprefix(f"{folder / MANIFEST_NAME} ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c["shards"].append(c["shards"][0]), "2 shards are named train-000000.tar"),
        (lambda c: c["shards"][0].update(num_bytes=True), "num_bytes is True"),
        (lambda c: c["shards"][0].update(num_bytes=-1), "num_bytes is -1"),
        (lambda c: c["shards"][0].update(sha256=7), "sha256 is 7"),
        (lambda c: c["splits"]["train"].update(key_xor=None), "key_xor is None"),
        (lambda c: c["source"].update(attribution=[]), "attribution is []"),
        (lambda c: c["splits"].update(dev={"num_samples": 0, "key_xor": ""}),
         "a split is named 'dev': they are train, val, test"),
        (lambda c: c["splits"]["train"].update(num_samples=2),
         "its split 'train' has 2 samples, and the shards of that split 1"),
        (lambda c: c["shards"][0].update(split="val"),
         "its split 'train' has 1 samples, and the shards of that split 0"),
        (lambda c: c["splits"].clear(), "its split 'train' has 0 samples, and the shards of that split 1"),
        (lambda c: c["source"].update({VALUES_KEY: THREE_VALUES | {"background": True}}),
         f"its {VALUES_KEY} values are {THREE_VALUES | {'background': True}}"),
        (lambda c: c["source"].update({VALUES_KEY: {"background": 1}}),
         f"its {VALUES_KEY} values are {{'background': 1}}"),
        (lambda c: c.update(packer=[1]), "packer is [1]"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used_is_told_why(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    assert refusal(tmp_path, change) == f"cannot be used ({problem}): pack the set again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("hash"), "is damaged (KeyError('hash')): pack the set again"),
        (lambda c: c.update(splits=[]),
         "is damaged (AttributeError(\"'list' object has no attribute 'items'\")): pack the set again"),
        (lambda c: c.update(hash=""), "was altered: its content does not match its hash; pack the set again"),
        (lambda c: c.update(format_version=2), "is damaged (KeyError('classes')): pack the set again"),
        (lambda c: c.pop("format_version"), "has format version None, this petseg reads 1 and 2: pack it again"),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_told_from_an_altered_one_and_another_version(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    assert refusal(tmp_path, change) == said


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_what_is_no_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ShardSetError, match=rf"^{tmp_path}/manifest\.json (is damaged|has format version None)"):
        load_manifest(tmp_path)


def test_an_empty_split_needs_no_shard(tmp_path: Path) -> None:
    manifest = save_manifest(replace(SMALL, splits=SMALL.splits | {"val": Split(0, "0" * 16)}), tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert manifest.of_split("val") == ()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('["a",1,2,3,4,5,6,7,8]', "row of 'a'"),
        ('["a",1,2,3,4,5,6,7,8,9,10]', "row of 'a'"),
        ('["a",1,2,3,4,5,6,7,8,true]', "row of 'a'"),
        ('["a b",1,2,3,4,5,6,7,8,9]', "row of 'a b': the key must match [A-Za-z0-9_-]+"),
    ],
)
def test_a_row_that_an_index_cannot_have_is_named(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "train-000000.index.json"
    path.write_text(f"[{row}]")
    with pytest.raises(ShardSetError) as error:
        load_index(tmp_path, "train-000000.tar")
    assert str(error.value) == f"{path} is damaged ({said}): pack the set again"
    path.unlink()
    with pytest.raises(ShardSetError) as error:
        load_index(str(tmp_path), "train-000000.tar")
    assert str(error.value) == f"{path} is missing: pack the set again"
