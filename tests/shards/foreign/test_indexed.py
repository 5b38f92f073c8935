"""Indexed foreign shards: damage found and repaired, indexed again, and the command's use."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from petseg.data.store import open_store
from petseg.data.tars import TarReader
from shards.command import FAILED, OK, WRONG_USE, run_command
from shards.foreign.index import ForeignConfig, index_folder
from shards.index import index_name, load_index
from shards.integrity.repair import repair
from shards.manifest import MANIFEST_NAME, load_manifest
from shards.verify import DAMAGED, main, verify
from tests.shards.foreign_tars import write_tar, write_webdataset

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open


@pytest.fixture
def indexed(folder: Path, pair) -> Path:
    write_webdataset(folder, pair, "train", 6)
    index_folder(folder, ForeignConfig())
    return folder


def flip_data(data: bytearray, offset: int, num_bytes: int) -> None:
    data[offset + num_bytes // 2] ^= 1


def flip_header(data: bytearray, offset: int, num_bytes: int) -> None:
    data[offset - 510] ^= 1


def zero_header(data: bytearray, offset: int, num_bytes: int) -> None:
    data[offset - 512 : offset] = bytes(512)


def rename(data: bytearray, offset: int, num_bytes: int) -> None:
    """Name and checksum: a valid header of another sample."""
    info = tarfile.TarInfo("train_9.jpg")
    info.size = num_bytes
    data[offset - 512 : offset] = info.tobuf(tarfile.USTAR_FORMAT)


def cut(data: bytearray, offset: int, num_bytes: int) -> None:
    del data[offset + num_bytes // 2 :]


def time_in_header(data: bytearray, offset: int, num_bytes: int) -> None:
    data[offset - 512 + 155] ^= 1  # outside the header's checksum


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (flip_data, "the data of train_2.jpg are altered"),
        (flip_header, "the header of train_2.jpg is damaged, its data are whole"),
        (zero_header, "the header of train_2.jpg is zeroed, its data are whole"),
        (rename, "the header of train_2.jpg is altered, its data are whole"),
        (cut, "train_2.jpg is cut off after"),
        (time_in_header, "its bytes do not match its sha256"),
    ],
)
def test_damage_is_found_and_repaired_from_a_copy(indexed: Path, tmp_path: Path, kind, problem: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in indexed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    sample = load_index(indexed, "train-000000.tar")[2]
    data = bytearray((indexed / "train-000000.tar").read_bytes())
    kind(data, sample.jpg.offset, sample.jpg.num_bytes)
    (indexed / "train-000000.tar").write_bytes(data)
    findings = verify(indexed)
    assert any(finding.problem.startswith(problem) for finding in findings)
    assert run_command(main, [str(indexed)]) == DAMAGED
    with pytest.raises(ValueError, match="from another copy of it, not from pictures"):
        repair(indexed, tmp_path)
    assert repair(indexed, copy) == ["train-000000.tar"]
    assert verify(indexed) == []


def test_a_lost_index(indexed: Path) -> None:
    path = indexed / index_name("train-000000.tar")
    path.unlink()
    assert [finding.problem for finding in verify(indexed)] == ["the index is missing"]


def test_indexing_again(indexed: Path, pair) -> None:
    first = load_manifest(indexed)
    assert index_folder(indexed, ForeignConfig()).manifest == first
    (indexed / "train-000001.tar").unlink()
    again = index_folder(indexed, ForeignConfig()).manifest
    assert [shard.name for shard in again.shards] == ["train-000000.tar"]
    assert verify(indexed) == []  # the index of the shard that is gone, is gone too


def test_wrong_use(shard_set: Path, folder: Path, capsys) -> None:
    before = (shard_set / MANIFEST_NAME).read_bytes()
    assert run_command(main, [str(shard_set), "--index"]) == WRONG_USE
    assert "holds a set packed by petseg" in capsys.readouterr().err
    assert (shard_set / MANIFEST_NAME).read_bytes() == before
    assert run_command(main, [str(folder), "--index"]) == WRONG_USE
    assert "has no .tar files" in capsys.readouterr().err
    assert run_command(main, [str(folder / "nowhere"), "--index"]) == WRONG_USE
    (folder / MANIFEST_NAME).write_text("{")
    assert run_command(main, [str(folder), "--index"]) == WRONG_USE
    assert "remove" in capsys.readouterr().err
    (folder / "._train-0.tar").touch()
    (folder / MANIFEST_NAME).unlink()
    assert run_command(main, [str(folder), "--index"]) == WRONG_USE
    assert "._train-0.tar: a shard's name must match" in capsys.readouterr().err
    (folder / "._train-0.tar").rename(folder / "trainval-0.tar")
    assert run_command(main, [str(folder), "--index"]) == WRONG_USE
    assert "--split train" in capsys.readouterr().err
    assert run_command(main, [str(folder), "--index", "--split", "train"]) == FAILED
    for args in (["--split", "val"], ["--index", "--repair", str(folder)], ["--index", "--trimap.pet", "2"],
                 ["--index", "--mask-suffix", ".png"], ["--index", "--mask-suffix", "jpg"]):  # fmt: skip
        assert run_command(main, [str(folder), *args]) == WRONG_USE


def test_options_on_the_command_line(folder: Path, pair, capsys) -> None:
    jpg, png = pair(0, pet=1, background=0, border=255)
    write_tar(folder / "x.tar", [("a.image.jpg", jpg), ("a.seg.png", png)])
    args = ["--index", "--image-suffix", "image.jpg", "--mask-suffix", "seg.png", "--split", "test"]
    trimap = ["--trimap.background", "0", "--trimap.border", "255"]
    assert run_command(main, [str(folder), *args, *trimap]) == OK
    assert json.loads((folder / MANIFEST_NAME).read_text())["source"]["trimap"] == {
        "pet": 1,
        "background": 0,
        "border": 255,
    }
    assert run_command(main, [str(folder)]) == OK
    assert "whole: 1 test samples in 1 shards" in capsys.readouterr().out


@pytest.mark.parametrize("order", [("jpg", "png"), ("png", "jpg")])
def test_a_sample_is_read_whichever_member_comes_first(folder: Path, pair, order: tuple[str, str]) -> None:
    members = dict(zip(("jpg", "png"), pair(0), strict=True))
    write_tar(folder / "train-0.tar", [(f"a.{kind}", members[kind]) for kind in order])
    index_folder(folder, ForeignConfig())
    jpg, png = TarReader(open_store(str(folder)), "train", 32).encoded(0)
    assert (bytes(jpg), bytes(png)) == (members["jpg"], members["png"])
