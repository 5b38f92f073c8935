"""Packing: reproducible, complete, and safe to run again."""

import json
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.command import FAILED, INTERRUPTED, OK, WRONG_USE, Failure, run_command
from shards.encoding import JPEG_QUALITY
from shards.index import load_index
from shards.manifest import MANIFEST_NAME, load_manifest, save_manifest, split_of_keys
from shards.pack import PackConfig, main, pack
from shards.packing.plan import mixed_order
from shards.sources.pets.oxford import read_folder
from shards.verify import verify


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_byte_for_byte_with_any_number_of_processes(packed: Path, drawn: Path, tmp_path: Path) -> None:
    pack(PackConfig(out=tmp_path / "again", source=drawn, samples_per_shard=10, workers=2))
    assert files_of(tmp_path / "again") == files_of(packed)
    pack(PackConfig(out=tmp_path / "other", source=drawn, samples_per_shard=10, workers=1, seed=1))
    assert load_manifest(tmp_path / "other").splits == load_manifest(packed).splits
    assert load_manifest(tmp_path / "other").hash != load_manifest(packed).hash


def test_drawn_aside_or_kept_is_the_same_set(tmp_path: Path) -> None:
    for name, folder in (("aside", None), ("kept", tmp_path / "pets")):
        config = PackConfig(
            out=tmp_path / name, synthetic=8, synthetic_folder=folder, synthetic_longer_side_px=40, workers=1
        )
        assert not pack(config).was_there
    assert files_of(tmp_path / "aside") == files_of(tmp_path / "kept")
    assert len(read_folder(tmp_path / "pets").samples) == 8


def test_splits_are_those_of_the_lists_and_never_mix(packed: Path, drawn: Path) -> None:
    manifest = load_manifest(packed)
    seen: set[str] = set()
    for split, content in manifest.splits.items():
        keys = [s.key for shard in manifest.of_split(split) for s in load_index(packed, shard.name)]
        assert sorted(keys) == sorted(pet.key for pet in read_folder(drawn).samples if pet.split == split)
        assert split_of_keys(keys) == content
        assert not seen & set(keys)
        seen.update(keys)
        sizes = [shard.num_samples for shard in manifest.of_split(split)]
        assert max(sizes) <= 10
        assert max(sizes) - min(sizes) <= 1


def test_each_shard_mixes_breeds(packed: Path) -> None:
    for shard in load_manifest(packed).of_split("test"):
        breeds = [sample.key.rpartition("_")[0] for sample in load_index(packed, shard.name)]
        assert breeds != sorted(breeds)


@given(st.integers(0, 2**32))
def test_the_order_is_a_permutation(drawn: Path, seed: int) -> None:
    pets = read_folder(drawn).samples[:8]
    order = mixed_order(pets, seed)
    assert sorted(order, key=pets.index) == list(pets)
    assert order == mixed_order(pets[::-1], seed)


def test_index_offsets_are_the_bytes_of_the_members(packed: Path, drawn: Path) -> None:
    for shard in load_manifest(packed).shards:
        data = (packed / shard.name).read_bytes()
        for s in load_index(packed, shard.name):
            jpg, png, facts = (data[m.offset : m.offset + m.num_bytes] for _, m in s.members())
            assert jpg == (drawn / "images" / f"{s.key}.jpg").read_bytes()
            assert png == (drawn / "annotations" / "trimaps" / f"{s.key}.png").read_bytes()
            assert (json.loads(facts)["key"], json.loads(facts)["split"]) == (s.key, shard.split)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
def test_webdataset_reads_every_triple(packed: Path) -> None:
    for shard in load_manifest(packed).shards:
        dataset = webdataset.WebDataset([str(packed / shard.name)], shardshuffle=False)
        samples = list(dataset)
        assert [sample["__key__"] for sample in samples] == [s.key for s in load_index(packed, shard.name)]
        assert all({"jpg", "png", "json"} <= sample.keys() for sample in samples)


def test_gnu_tar_reads_it(packed: Path) -> None:
    names = subprocess.run(
        ["tar", "tvf", packed / "val-000000.tar"], check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert len(names) == 9
    assert all(line.startswith("-rw-r--r-- 0/0") and "1970-01-01" in line for line in names)


def test_the_manifest_knows_no_time_machine_or_path(packed: Path, drawn: Path) -> None:
    text = (packed / MANIFEST_NAME).read_text()
    assert str(drawn) not in text
    assert os.uname().nodename not in text
    packer = json.loads(text)["packer"]
    assert set(packer) == {"image_size_px", "jpeg_quality", "samples_per_shard", "seed", "oddities"}
    assert packer["jpeg_quality"] == JPEG_QUALITY == 95  # sets that were packed before say so, and are repaired by it


def test_oddities_are_counted(odd, tmp_path: Path, make, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(7):
        odd.add(f"pug_{index}", jpg=make["encode"](make["rgb"]().convert("L")))
    odd.picture("._pug_1").touch()
    assert run_command(main, ["--source", str(odd.root), "--out", str(tmp_path / "set")]) == OK
    assert load_manifest(tmp_path / "set").packer["oddities"] == {"not_rgb": 7, "apple_double": 1}
    assert set(load_manifest(tmp_path / "set").splits) == {"train", "val"}  # an empty split is none
    printed = capsys.readouterr().out
    assert "not_rgb" in printed
    assert "._pug_1.jpg" in printed
    assert verify(tmp_path / "set") == []


def test_bad_samples_are_all_named_and_nothing_is_left(odd, tmp_path: Path) -> None:
    for index in range(15):
        odd.add(f"pug_{index}", jpg=b"" if index != 7 else None)
    with pytest.raises(Failure, match=r"14 samples cannot be packed:\n(.*pug_.*\.jpg.*\n){10}  and 4 more"):
        pack(PackConfig(out=tmp_path / "set", source=odd.root, workers=1))
    assert not (tmp_path / "set").exists()


def run(*args: str | Path) -> int:
    return run_command(main, [str(arg) for arg in args])


def test_packing_again(drawn: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(shard_set)
    same = ("--source", drawn, "--out", shard_set, "--workers", "1")
    assert run(*same, "--samples-per-shard", "10") == OK
    assert "there already" in capsys.readouterr().out
    assert run(*same, "--samples-per-shard", "20") == WRONG_USE
    assert "samples_per_shard is 10, not 20" in (message := capsys.readouterr().err)
    assert "--overwrite" in message
    assert files_of(shard_set) == before
    assert run(*same, "--samples-per-shard", "20", "--overwrite") == OK
    assert len(load_manifest(shard_set).shards) == 5
    assert verify(shard_set) == []  # no shard of the old set is left


def test_other_samples_need_overwrite(odd, shard_set: Path) -> None:
    odd.add("pug_1")
    config = PackConfig(out=shard_set, source=odd.root, samples_per_shard=10, workers=1)
    with pytest.raises(ValueError, match=r"its samples differ.*--overwrite"):
        pack(config)
    assert verify(shard_set) == []


def test_a_lost_shard_is_put_back(drawn: Path, shard_set: Path) -> None:
    (shard_set / "train-000001.tar").unlink()
    assert not pack(PackConfig(out=shard_set, source=drawn, samples_per_shard=10, workers=1)).was_there
    assert verify(shard_set) == []


def test_shards_of_somebody_else_are_not_replaced(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match="shards without a manifest"):
        pack(PackConfig(out=tmp_path, source=drawn, workers=1))
    assert files_of(tmp_path) == {"train-000000.tar": b"mine"}


def test_a_damaged_manifest_needs_overwrite(drawn: Path, shard_set: Path) -> None:
    (shard_set / MANIFEST_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"is damaged.*--overwrite"):
        pack(PackConfig(out=shard_set, source=drawn, workers=1))
    pack(PackConfig(out=shard_set, source=drawn, workers=1, overwrite=True))
    assert verify(shard_set) == []


def test_wrong_use(tmp_path: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--source", drawn, "--synthetic", "9"], ["--source", drawn, "--workers", "-1"]):
        assert run("--out", tmp_path / "set", *args) == WRONG_USE
    assert "exactly one of --source DIR" in capsys.readouterr().err
    assert run("--out", tmp_path / "set", "--source", tmp_path / "nowhere") == WRONG_USE
    (drawn_copy := tmp_path / "pets" / "annotations").mkdir(parents=True)
    (drawn_copy / "trainval.txt").write_text("pug.x 1 1 1")
    assert run("--out", tmp_path / "set", "--source", tmp_path / "pets") == WRONG_USE


def test_damaged_pictures_exit_with_failed(odd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd.add("pug_1", png=b"")
    assert run("--out", tmp_path / "set", "--source", odd.root) == FAILED
    assert "pug_1.png" in capsys.readouterr().err


@pytest.fixture
def corrupt(odd, make):
    """A folder whose first three of eight pictures decode with a warning."""
    data = make["encode"](make["rgb"]())
    for index in range(8):
        odd.add(f"pug_{index}", jpg=data[:-2] + b"abc" * 9 + data[-2:] if index < 3 else data)
    return odd


def test_too_many_damaged_pictures_stop_the_pack_and_are_named(corrupt, tmp_path: Path, capsys, caplog) -> None:
    caplog.set_level(logging.INFO)
    args = ["--source", corrupt.root, "--out", tmp_path / "set", "--samples-per-shard", "2"]
    assert run(*args, "--max-corrupt", "2") == FAILED
    message = capsys.readouterr().err
    assert "3 pictures are damaged: they decode with a warning, and --max-corrupt is 2" in message
    for index in range(3):
        assert f"{corrupt.picture(f'pug_{index}')}: Corrupt JPEG data: 2" in message
    assert not (tmp_path / "set" / MANIFEST_NAME).exists()
    assert run(*args, "--max-corrupt", "2", "--resume") == FAILED  # those of finished shards count, too
    assert "pug_1, in a finished shard" in capsys.readouterr().err
    assert "resuming: 5 of 5 shards (8 samples) are whole" in caplog.text
    assert run(*args, "--max-corrupt", "3", "--resume") == OK
    assert "pug_0" in (printed := capsys.readouterr().out)
    assert "corrupt_jpeg" in printed
    assert verify(tmp_path / "set") == []
    pack(PackConfig(out=tmp_path / "other", source=corrupt.root, samples_per_shard=2, workers=1))
    assert files_of(tmp_path / "other") == files_of(tmp_path / "set")  # the limit is no part of the set
    with pytest.raises(ValueError, match=r"--max-corrupt is -1, but must be at least 0"):
        PackConfig(source=corrupt.root, max_corrupt=-1)


def test_suspects_are_named_and_shown(odd, make, tmp_path: Path, capsys, caplog) -> None:
    pixels = np.array(make["rgb"](160, 160))
    pixels[112:] = 128
    flat, png = make["encode"](Image.fromarray(pixels)), make["encode"](make["trimap"](160, 160), "PNG")
    for index in range(7):
        odd.add(f"pug_{index}", jpg=flat, png=png)
    assert run("--source", odd.root, "--out", tmp_path / "set") == OK
    assert f"may be damaged: {odd.picture('pug_0')}: 20% of it" in caplog.text
    keys = capsys.readouterr().out.partition(f"python -m shards.show {tmp_path / 'set'} --keys ")[2].split()
    assert sorted(keys) == [f"pug_{index}" for index in range(7)]  # all of them, not the first five
    assert load_manifest(tmp_path / "set").packer["oddities"] == {"suspect_picture": 7}


def test_saving_a_manifest_twice_changes_nothing(shard_set: Path) -> None:
    before = files_of(shard_set)
    save_manifest(load_manifest(shard_set), shard_set)
    assert files_of(shard_set) == before


def test_a_full_disk_is_no_wrong_use_and_with_room_the_pack_goes_on(
    drawn: Path, packed: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str], caplog
) -> None:
    num_bytes = sum(shard.num_bytes for shard in load_manifest(packed).shards)
    out = small_disk(num_bytes // 2) / "set"
    argv = ["--out", str(out), "--source", str(drawn), "--samples-per-shard", "10", "--workers", "1"]
    assert run_command(main, argv) == INTERRUPTED
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert ".tar; make room" in said
    assert "make room, then run the same command again" in said
    assert "add --resume to continue with them" in caplog.text
    small_disk(10 * num_bytes)
    assert run_command(main, [*argv, "--resume"]) == OK
    assert load_manifest(out).hash == load_manifest(packed).hash
