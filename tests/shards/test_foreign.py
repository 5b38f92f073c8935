"""Shards that stock webdataset or tar made: indexed in place, or refused with what is wrong with them."""

from __future__ import annotations

import gzip
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset

from shards.command import OK, Failure, run_command
from shards.foreign import ForeignConfig, index_folder
from shards.manifest import NO_MEMBER, load_index, load_manifest
from shards.show import ShowConfig, show
from shards.verify import main, verify
from tests.shards.foreign_tars import write_tar, write_webdataset

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open


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
