"""Broken shards are put back byte for byte, or left alone and named; the kinds of damage are in test_verify."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shards.command import FAILED, OK, WRONG_USE, Failure, run_command
from shards.index import index_name, load_index
from shards.integrity.repair import repair
from shards.manifest import MANIFEST_NAME, load_manifest, save_manifest
from shards.pack import PackConfig, pack
from shards.packing import publish
from shards.verify import DAMAGED, main, verify

SHARD, OTHER = "train-000001.tar", "test-000000.tar"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, place: int = 700) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture(params=["pictures", "copy"])
def source(request: pytest.FixtureRequest, packed: Path, drawn: Path) -> Path:
    return drawn if request.param == "pictures" else packed


def test_several_files_at_once(shard_set: Path, packed: Path, source: Path) -> None:
    (shard_set / SHARD).unlink()
    (shard_set / index_name(SHARD)).write_text("[]")
    flip(shard_set / OTHER)
    (shard_set / index_name("val-000000.tar")).unlink()
    assert repair(shard_set, source) == [SHARD, index_name(SHARD), index_name("val-000000.tar"), OTHER]
    assert files_of(shard_set) == files_of(packed)


def test_only_the_index_is_broken(shard_set: Path, packed: Path, source: Path) -> None:
    flip(shard_set / index_name(SHARD), 10)
    inode = (shard_set / SHARD).stat().st_ino
    assert repair(shard_set, source) == [index_name(SHARD)]
    assert files_of(shard_set) == files_of(packed)
    assert (shard_set / SHARD).stat().st_ino == inode


def test_copies_are_on_the_disk_before_they_have_their_name(shard_set: Path, packed: Path, synced: list[str]) -> None:
    (shard_set / SHARD).unlink()
    repair(shard_set, packed)
    assert SHARD in synced


def test_nothing_is_broken(shard_set: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_ino for path in shard_set.iterdir()}
    assert run_command(main, [str(shard_set), "--repair", str(source)]) == OK
    assert "rebuilt: nothing, all shards were whole" in capsys.readouterr().out
    assert {path.name: path.stat().st_ino for path in shard_set.iterdir()} == before


def test_other_pictures_replace_nothing(shard_set: Path, packed: Path, drawn: Path, tmp_path: Path, capsys) -> None:
    pets = Path(shutil.copytree(drawn, tmp_path / "pets"))
    first, second = (load_index(packed, SHARD)[place].key for place in (0, 1))
    (pets / "images" / f"{first}.jpg").write_bytes((pets / "images" / f"{second}.jpg").read_bytes())
    shutil.copy(pets / "annotations" / "trimaps" / f"{second}.png", pets / "annotations" / "trimaps" / f"{first}.png")
    flip(shard_set / SHARD)
    flip(shard_set / OTHER)
    broken = (shard_set / SHARD).read_bytes()
    assert run_command(main, [str(shard_set), "--repair", str(pets)]) == FAILED
    message = capsys.readouterr().err
    assert f"repaired {OTHER}, but not these" in message  # a shard that can be repaired is
    wanted = next(shard.sha256 for shard in load_manifest(packed).shards if shard.name == SHARD)
    assert f"{SHARD}: sha256 {wanted} is wanted, " in message
    assert "repair from another copy of the set" in message
    assert (shard_set / SHARD).read_bytes() == broken
    assert {finding.shard for finding in verify(shard_set)} == {SHARD}
    assert not (shard_set / publish.STAGING).exists()


def test_a_picture_that_cannot_be_packed(shard_set: Path, drawn: Path, tmp_path: Path) -> None:
    pets = Path(shutil.copytree(drawn, tmp_path / "pets"))
    key = load_index(shard_set, SHARD)[0].key
    (pets / "images" / f"{key}.jpg").write_bytes(b"no")
    flip(shard_set / SHARD)
    with pytest.raises(Failure, match=rf"nothing was repaired:\n  {SHARD}: 1 samples cannot be packed:\n.*{key}\.jpg"):
        repair(shard_set, pets)
    flip(shard_set / OTHER)
    with pytest.raises(Failure, match=rf"repaired {OTHER}, but not these:\n  {SHARD}: 1 samples cannot be packed"):
        repair(shard_set, pets)  # one that cannot be packed keeps no other from being repaired


def test_a_trimap_that_is_damaged_by_now(shard_set: Path, drawn: Path, tmp_path: Path) -> None:
    """Its checksum tells, so it is named instead of a shard that is other than it should be."""
    pets = Path(shutil.copytree(drawn, tmp_path / "pets"))
    key = load_index(shard_set, SHARD)[0].key
    flip(pets / "annotations" / "trimaps" / f"{key}.png", -13)
    flip(shard_set / SHARD)
    with pytest.raises(Failure, match=rf"nothing was repaired:\n  {SHARD}: 1 samples .*:\n.*{key}\.png is damaged"):
        repair(shard_set, pets)


def test_any_number_of_damaged_pictures_is_put_back(odd, make, tmp_path: Path) -> None:
    """Whoever packed the set has taken them."""
    data = make["encode"](make["rgb"]())
    for index in range(12):
        odd.add(f"pug_{index}", jpg=data[:-2] + b"abc" * 9 + data[-2:])
    pack(PackConfig(out=tmp_path / "set", source=odd.root, max_corrupt=12, workers=1))
    before = files_of(tmp_path / "set")
    flip(tmp_path / "set" / "train-000000.tar")
    assert repair(tmp_path / "set", odd.root) == ["train-000000.tar"]
    assert files_of(tmp_path / "set") == before


def test_pictures_of_another_set(shard_set: Path, odd) -> None:
    odd.add("pug_1")
    flip(shard_set / SHARD)
    with pytest.raises(ValueError, match=r"has other samples than the set: split train has 0 with key XOR"):
        repair(shard_set, odd.root)
    with pytest.raises(ValueError, match=r"neither the folder that the set was packed from nor a copy of the set"):
        repair(shard_set, odd.root / "images")


def test_a_copy_of_another_set_or_broken_too(shard_set: Path, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    for folder in (copy, shard_set):
        flip(folder / SHARD)
    with pytest.raises(Failure, match=r"nothing was repaired:\n.* is wanted, .*the file in .*copy is broken too"):
        repair(shard_set, copy)
    (copy / SHARD).unlink()
    with pytest.raises(Failure, match=r"is missing too: repair from another copy"):
        repair(shard_set, copy)
    save_manifest(replace(load_manifest(copy), packer={}), copy)
    with pytest.raises(ValueError, match=r"is another shard set: hash"):
        repair(shard_set, copy)


def test_the_manifest_is_needed(shard_set: Path, packed: Path, drawn: Path, capsys) -> None:
    (shard_set / MANIFEST_NAME).write_text("{")
    assert run_command(main, [str(shard_set), "--repair", str(drawn)]) == WRONG_USE
    assert "copy it to" in capsys.readouterr().err
    (shard_set / MANIFEST_NAME).unlink()
    assert run_command(main, [str(shard_set), "--repair", str(packed)]) == WRONG_USE
    assert f"copy its manifest.json to {shard_set} and repair again" in capsys.readouterr().err


def test_what_repair_cannot_mend_is_still_found(shard_set: Path, packed: Path, capsys) -> None:
    (shard_set / "train-000009.tar").touch()
    flip(shard_set / SHARD)
    assert run_command(main, [str(shard_set), "--repair", str(packed)]) == DAMAGED
    printed = capsys.readouterr().out
    assert "is not in the manifest" in printed
    assert f"rebuilt: {SHARD}" in printed


def test_a_pack_at_work_or_killed(shard_set: Path, packed: Path, drawn: Path) -> None:
    flip(shard_set / SHARD)
    with publish.locked(shard_set), pytest.raises(ValueError, match="another pack is writing"):
        repair(shard_set, packed)
    (shard_set / publish.STAGING / "train-000000.tar").write_bytes(b"finished")  # as by a killed --overwrite
    assert repair(shard_set, drawn) == [SHARD]
    assert (shard_set / publish.STAGING / "train-000000.tar").read_bytes() == b"finished"
