"""What a repair may be fed from, what it says where that does not do, and what it leaves alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shards.command import Failure
from shards.index import index_name, load_index
from shards.integrity import repair as repair_module
from shards.integrity.repair import ASIDE, repair
from shards.manifest import DROPPED, MANIFEST_NAME, load_manifest, save_manifest
from shards.packing import publish

SHARD, OTHER = "train-000001.tar", "test-000000.tar"
NOT_SAID = "the manifest does not say how the set was packed: repair from another copy of the set"


def flip(path: Path, place: int = 700) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def refusal(error: type[Exception], folder: Path, source: Path) -> str:
    with pytest.raises(error) as raised:
        repair(folder, source)
    assert not (folder / publish.STAGING).exists()
    return str(raised.value)


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """A whole copy of the set, to be spoiled."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


@pytest.mark.parametrize(("content", "what"), [("{", "is damaged"), (None, "is missing")])
@pytest.mark.parametrize("has_copy", [True, False])
def test_without_its_own_manifest_a_set_is_told_where_to_get_it(
    shard_set: Path, copy: Path, content: str | None, what: str, has_copy: bool
) -> None:
    path = shard_set / MANIFEST_NAME
    path.unlink()
    if content is not None:
        path.write_text(content)
    if has_copy:
        advice = f"if {copy} is a copy of this set, copy its manifest.json to {shard_set} and repair again"
    else:
        (copy / MANIFEST_NAME).write_text("{")
        advice = f"copy it to {shard_set} from another copy of the set"
    assert refusal(ValueError, shard_set, copy) == f"{path} {what}, and --repair goes by it: {advice}"


def test_a_shard_of_which_half_can_be_put_back_stays_as_it_is(shard_set: Path, copy: Path) -> None:
    for path in (shard_set / SHARD, shard_set / index_name(SHARD), shard_set / OTHER, copy / index_name(SHARD)):
        flip(path, 10)
    before = {name: (shard_set / name).read_bytes() for name in (SHARD, index_name(SHARD))}
    shard = next(shard for shard in load_manifest(copy).shards if shard.name == SHARD)
    got = repair_module._sha256_of(copy / index_name(SHARD))
    assert refusal(Failure, shard_set, copy) == (
        f"repaired {OTHER}, but not these:\n  {index_name(SHARD)}: sha256 {shard.index_sha256} is wanted, {got} is "
        f"what came of it; the file in {copy} is broken too: repair that copy first, or name a third one"
    )
    assert {name: (shard_set / name).read_bytes() for name in before} == before
    assert (shard_set / OTHER).read_bytes() == (copy / OTHER).read_bytes()


def test_files_that_cannot_be_copied_are_named_and_the_others_put_back(shard_set: Path, copy: Path) -> None:
    for name in (SHARD, OTHER, "val-000000.tar"):
        flip(shard_set / name)
    (copy / SHARD).unlink()
    (copy / "val-000000.tar").unlink()
    (copy / "val-000000.tar").mkdir()
    assert refusal(Failure, shard_set, copy) == (
        f"repaired {OTHER}, but not these:\n"
        f"  {SHARD}: {copy / SHARD} is missing too: repair from another copy\n"
        f"  val-000000.tar: {copy / 'val-000000.tar'} cannot be copied "
        f"({copy / 'val-000000.tar'} is a folder, not a regular file)"
    )


def test_a_copy_of_another_set_is_told_by_both_hashes(shard_set: Path, copy: Path) -> None:
    flip(shard_set / SHARD)
    ours, theirs = load_manifest(shard_set), save_manifest(replace(load_manifest(copy), packer={}), copy)
    assert refusal(ValueError, shard_set, copy) == (
        f"{copy} is another shard set: hash {theirs.hash[:10]}, not {ours.hash[:10]}"
    )


def test_the_names_are_on_the_disk_once_the_files_are(shard_set: Path, packed: Path, synced: list[str]) -> None:
    for name in (SHARD, OTHER):
        flip(shard_set / name)
    repair(shard_set, packed)
    assert synced == [SHARD, shard_set.name, OTHER, shard_set.name]


def test_an_index_that_the_tar_does_not_tell_is_left_alone(shard_set: Path, drawn: Path) -> None:
    """Its manifest was made by another program, so that no packing of ours leads to it."""
    manifest, wanted = load_manifest(shard_set), "0" * 64
    shards = tuple(replace(s, index_sha256=wanted) if s.name == SHARD else s for s in manifest.shards)
    save_manifest(replace(manifest, shards=shards), shard_set)
    got = next(shard.index_sha256 for shard in manifest.shards if shard.name == SHARD)
    before = (shard_set / index_name(SHARD)).read_bytes()
    assert refusal(Failure, shard_set, drawn) == (
        f"nothing was repaired:\n  {index_name(SHARD)}: sha256 {wanted} is wanted, {got} is what came of it; the tar "
        "is whole, but its index is not what this petseg writes: repair from another copy of the set"
    )
    assert (shard_set / index_name(SHARD)).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"jpeg_quality": 90}, "the set has JPEG quality 90, this petseg packs 95"),
        ({"jpeg_quality": None}, "the set has JPEG quality None, this petseg packs 95"),
        ({"seed": None}, NOT_SAID),
        ({"samples_per_shard": "7"}, NOT_SAID),
    ],
)  # fmt: skip
def test_a_set_that_was_packed_otherwise_is_not_packed_again(
    shard_set: Path, drawn: Path, change: dict, said: str
) -> None:
    manifest = load_manifest(shard_set)
    packer = {name: value for name, value in (manifest.packer | change).items() if value is not None}
    save_manifest(replace(manifest, packer=packer), shard_set)
    flip(shard_set / SHARD)
    assert refusal(ValueError, shard_set, drawn) == said


def test_pictures_that_were_left_out_are_not_asked_for_again(shard_set: Path, drawn: Path) -> None:
    """The manifest names them: without that, the folder has a sample more than the set."""
    manifest = load_manifest(shard_set)
    key = load_index(shard_set, SHARD)[0].key
    save_manifest(replace(manifest, packer=manifest.packer | {DROPPED: [key]}), shard_set)
    flip(shard_set / SHARD)
    assert f"{drawn} has other samples than the set: split train has 26 with" in refusal(ValueError, shard_set, drawn)


def test_only_so_many_problems_are_named(shard_set: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "first_lines", partial(repair_module.first_lines, most=1))
    names = [shard.name for shard in load_manifest(shard_set).shards]
    for name in names:
        flip(shard_set / name)
        (copy / name).unlink()
    first = f"{names[0]}: {copy / names[0]} is missing too: repair from another copy"
    assert refusal(Failure, shard_set, copy) == f"nothing was repaired:\n  {first}\n  and {len(names) - 1} more"


def test_a_link_where_files_are_put_aside_is_removed_itself(shard_set: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    staging = shard_set / publish.STAGING
    staging.mkdir()
    (staging / ASIDE).symlink_to(tmp_path / "mine")
    flip(shard_set / SHARD)
    assert repair(shard_set, packed) == [SHARD]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert not staging.exists()


def test_what_a_killed_repair_left_aside_is_not_used(shard_set: Path, packed: Path) -> None:
    aside = shard_set / publish.STAGING / ASIDE
    aside.mkdir(parents=True)
    (aside / SHARD).write_bytes(b"half")
    assert repair(shard_set, packed) == []  # nothing is broken
    assert not aside.exists()


@pytest.mark.parametrize(("asked", "wanted"), [(0, 5), (3, 3)])
def test_a_shard_is_packed_by_as_many_workers_as_were_asked_for(
    shard_set: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, asked: int, wanted: int
) -> None:
    taken: list[tuple[str, int, int]] = []

    def built(plan: list, options: repair_module.BuildOptions) -> list:
        taken.extend((one.name, options.image_size_px, options.num_workers) for one in plan)
        return []

    monkeypatch.setattr(repair_module, "workers_for", lambda num_samples: 5 if num_samples == 9 else 0)
    monkeypatch.setattr(repair_module, "build_shards", built)
    flip(shard_set / SHARD)
    with pytest.raises(Failure, match=rf"{SHARD}: sha256 \w+ is wanted, nothing is what came of it; the pictures or"):
        repair(shard_set, drawn, num_workers=asked)
    assert taken == [(SHARD, 0, wanted)]
