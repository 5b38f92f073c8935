"""Shards that stock webdataset or tar made: indexed in place, read by petseg, and checked as our own are."""

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.command import FAILED, OK, WRONG_USE, Failure, run_command
from shards.foreign import ForeignConfig, index_folder
from shards.manifest import MANIFEST_NAME, NO_MEMBER, index_name, load_index, load_manifest
from shards.repair import repair
from shards.show import ShowConfig, show
from shards.verify import DAMAGED, main, verify

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
Files = Iterable[tuple[str, bytes]]


@pytest.fixture
def pair(make):
    """(picture, mask) of a seed, as bytes."""

    def of(seed: int, **values: int) -> tuple[bytes, bytes]:
        meaning = {"pet": 1, "background": 2, "border": 3} | values
        mask = np.asarray(make["trimap"](24 + seed))
        table = np.zeros(4, np.uint8)
        table[1:] = meaning["pet"], meaning["background"], meaning["border"]
        return make["encode"](make["rgb"](24 + seed)), make["encode"](Image.fromarray(table[mask]), "PNG")

    return of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def write_webdataset(folder: Path, pair, split: str, count: int, **extra: object) -> None:
    pattern = str(folder / f"{split}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for seed in range(count):
            jpg, png = pair(seed)
            writer.write({"__key__": f"{split}_{seed}", "jpg": jpg, "png": png, **extra})


def write_tar(path: Path, files: Files, format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def problems_of(folder: Path, **options) -> str:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((Failure, ValueError)) as error:
        index_folder(folder, ForeignConfig(**options))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # all or nothing
    return str(error.value)


def test_stock_shards_are_indexed_read_and_checked(folder: Path, pair, tmp_path: Path, capsys) -> None:
    for split, count in (("train", 6), ("val", 2)):
        write_webdataset(folder, pair, split, count, cls=3, json={"breed": "pug"})
    tars = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run_command(main, [str(folder), "--index"]) == OK
    printed = capsys.readouterr().out
    assert printed.startswith("indexed: 6 train, 2 val samples in 3 shards, hash ")
    assert "left out: 8 .cls" in printed
    assert {name: (folder / name).read_bytes() for name in tars} == tars
    manifest = load_manifest(folder)
    assert manifest.packer == {"foreign": True, "image_suffix": "jpg", "mask_suffix": "png"}
    assert verify(folder) == verify(folder, num_workers=2) == []
    samples = load_index(folder, "train-000000.tar") + load_index(folder, "train-000001.tar")
    assert [sample.key for sample in samples] == [f"train_{seed}" for seed in range(6)]
    assert show(ShowConfig(folder, out=tmp_path / "sheet.png", count=3)) == 3
    assert load_index(folder, "train-000000.tar")[0].json != NO_MEMBER


def test_without_facts_in_folders_with_long_names_and_other_suffixes(folder: Path, pair) -> None:
    """Headers in pax and GNU form, folders in front of the names, a suffix with a dot, capitals, own mask values."""
    values = {"pet": 255, "background": 0, "border": 128}
    deep = f"./{'d' * 90}/é"
    for split, format in (("train", tarfile.PAX_FORMAT), ("val", tarfile.GNU_FORMAT), ("test", tarfile.USTAR_FORMAT)):
        files = []
        for seed in range(3):
            jpg, png = pair(seed, **values)
            name = f"{'a/b' if split == 'test' else deep}/{split}_{seed}"
            files += [(f"{name}.JPEG", jpg), (f"{name}.seg.png", png), (f"{name}.txt", b"x")]
        write_tar(folder / f"{split}.tar", files, format)
    indexed = index_folder(folder, ForeignConfig(mask_suffix="seg.png", trimap=values))
    assert indexed.left_out == {"txt": 9}
    assert indexed.manifest.source.trimap == values
    assert verify(folder) == []
    samples = load_index(folder, "val.tar")
    assert [sample.key for sample in samples] == ["val_0", "val_1", "val_2"]
    assert all(sample.json == NO_MEMBER for sample in samples)
    data = (folder / "val.tar").read_bytes()
    assert data[samples[1].jpg.offset : samples[1].jpg.offset + samples[1].jpg.num_bytes] == pair(1, **values)[0]
    names = {name for line in webdataset.WebDataset([str(folder / "val.tar")], shardshuffle=False) for name in line}
    assert {"jpeg", "seg.png"} <= names


@pytest.mark.parametrize("format", ["gnu", "posix", "ustar", "v7"])
def test_what_tar_makes(folder: Path, pair, tmp_path: Path, format: str) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(3):
        for suffix, content in zip(("jpg", "png"), pair(seed), strict=True):
            (pictures / f"pug_{seed}.{suffix}").write_bytes(content)
    command = ["tar", f"--format={format}", "--sort=name", "-cf", folder / "all.tar", "-C", pictures, "."]
    subprocess.run(command, check=True, timeout=60)
    assert "all.tar: the name does not tell its split" in problems_of(folder)
    index_folder(folder, ForeignConfig(split="train"))
    assert verify(folder) == []


def good(pair, *keys: str) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.{suffix}", content)
        for seed, key in enumerate(keys)
        for suffix, content in zip(("jpg", "png"), pair(seed), strict=True)
    ]


def test_what_webdataset_would_drop_or_cut_in_halves_is_named(folder: Path, pair, make) -> None:
    (ajpg, apng), (bjpg, bpng) = good(pair, "a"), good(pair, "b")
    wide = ("a.jpg", make["encode"](make["rgb"](99)))
    cases = [
        ([ajpg, bjpg, apng, bpng], "train.tar: sample a has members that are not adjacent"),
        ([ajpg, apng, bjpg], "train.tar: sample b has no mask (.png)"),
        ([apng, bjpg, bpng], "train.tar: sample a has no picture (.jpg or .jpeg)"),
        ([ajpg, apng, bjpg, bpng, ajpg, apng], "train.tar: sample a is there twice"),
        ([ajpg, apng, apng], "train.tar: a.png is the second png of its sample"),
        ([ajpg, ("a.jpeg", ajpg[1]), apng], "train.tar: a.jpeg is the second jpg of its sample"),
        (good(pair, "x/a", "y/a"), "key a is there twice: x/a in train.tar and y/a in train.tar"),
        (good(pair, "ä"), r"train.tar: sample ä: the key 'ä' must match"),
        ([ajpg, ("a.png", b"no")], "train.tar: sample a: a.png cannot be decoded"),
        ([("a.jpg", b"no"), apng], "train.tar: sample a: a.jpg cannot be decoded"),
        ([wide, apng], "train.tar: sample a: a.png is 24 x 16, its picture 99 x 16"),
    ]
    for files, problem in cases:
        write_tar(folder / "train.tar", files)
        assert problem in problems_of(folder)


def test_a_key_in_two_shards(folder: Path, pair) -> None:
    write_tar(folder / "train-0.tar", good(pair, "a", "b"))
    write_tar(folder / "val-0.tar", good(pair, "c", "b"))
    assert "key b is there twice: b in train-0.tar and b in val-0.tar" in problems_of(folder)


def test_mask_values_and_formats(folder: Path, pair, make) -> None:
    jpg, png = pair(0, border=9)
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", png)])
    assert "sample a: a.png has other values than 1 (pet), 2 (background), 3 (border): 9" in problems_of(folder)
    palette = make["encode"](make["trimap"]().convert("P"), "PNG")
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", palette)])
    assert "a.png has the pixel format P" in problems_of(folder)


def test_cut_damaged_and_compressed_tars(folder: Path, pair) -> None:
    write_tar(folder / "train.tar", good(pair, "a", "b", "c"))
    whole = (folder / "train.tar").read_bytes()
    with tarfile.open(folder / "train.tar") as tar:
        at = {info.name: info.offset for info in tar}
    zeroed = whole[: at["b.png"]] + bytes(512) + whole[at["b.png"] + 512 :]
    cases = [
        (whole[: at["c.jpg"]], "cut short: "),
        (whole[: at["c.jpg"] + 100], "cut short: "),
        (whole[: at["c.png"] + 520], "cut short: c.png is cut off after 8 bytes"),
        (whole[: at["b.png"] + 2] + b"?" + whole[at["b.png"] + 3 :], "damaged header at byte"),
        (zeroed, "members behind the end of the tar"),
        (whole + whole, "tars that were joined?"),
        (b"", "it is empty"),
        (b"no tar" * 999, "damaged, or not a tar"),
        (gzip.compress(whole), "compressed with gzip"),
    ]
    for content, problem in cases:
        (folder / "train.tar").write_bytes(content)
        assert problem in (message := problems_of(folder))
        assert "train.tar: " in message
    (folder / "train.tar").rename(folder / "train.tar.gz")
    assert "train.tar.gz is compressed (1 such files)" in problems_of(folder)


def test_links_and_notes(folder: Path, pair) -> None:
    write_tar(
        folder / "train.tar", [*good(pair, "a"), ("__index__/b.jpg", b"x"), (".hidden", b"x"), ("info.json", b"{}")]
    )
    assert index_folder(folder, ForeignConfig()).left_out == {"json": 1}
    with tarfile.open(folder / "train.tar", "a") as tar:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    with pytest.raises(Failure, match=r"train\.tar: c\.jpg is a link"):
        index_folder(folder, ForeignConfig())


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
        with pytest.raises(SystemExit) as exit_:
            run_command(main, [str(folder), *args])
        assert exit_.value.code == WRONG_USE


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
