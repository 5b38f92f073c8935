"""Shards that stock webdataset or tar made: indexed in place, or refused with what is wrong with them."""

from __future__ import annotations

import gzip
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from shards.command import OK, Failure, run_command
from shards.foreign.index import ForeignConfig, index_folder
from shards.foreign.scan import LeftOut, Named
from shards.index import NO_MEMBER, load_index
from shards.manifest import load_manifest
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
    indexed = index_folder(folder, ForeignConfig(mask_suffix="seg.png", values=values))
    assert indexed.left_out == LeftOut(Counter({".txt": 9}))
    assert indexed.manifest.source.values == values
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
    write_tar(folder / "val-0.tar", good(pair, "c", "d/b"))  # folders are no part of a key
    assert "key b is there twice: b in train-0.tar and d/b in val-0.tar" in problems_of(folder)


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
    left_out = index_folder(folder, ForeignConfig()).left_out
    assert left_out.members == {"under __NAME__, as webdataset names its notes": 1, "without a suffix": 1}
    assert left_out.samples == Named(["train.tar: 'info' has .json"], 1)
    with tarfile.open(folder / "train.tar", "a") as tar:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    with pytest.raises(Failure, match=r"train\.tar: c\.jpg is a link") as error:
        index_folder(folder, ForeignConfig())
    assert "1 problems" in str(error.value)  # not that it has no mask, too


def test_samples_with_dots_in_their_names_are_left_out_and_named_to_a_limit(folder: Path, pair, capsys) -> None:
    dotted = [(f"pug.v{seed}.{suffix}", content) for seed in range(3) for _, content in good(pair, "a")[:1]
              for suffix in ("jpg", "png")]  # fmt: skip
    names = [f"x\x1b{number}.v1.jpg" for number in range(30)]
    write_tar(folder / "train.tar", [*good(pair, "a"), *dotted, *((name, b"x") for name in names), ("README", b"x")])
    assert run_command(main, [str(folder), "--index", "--show", "20"]) == OK
    printed = capsys.readouterr().out
    assert printed.startswith("indexed: 1 train samples")
    assert "left out: 1 without a suffix\n" in printed
    assert "left out, 31 without picture and mask:\n  train.tar: 'pug' has .v0.jpg, .v0.png, .v1.jpg" in printed
    assert "and 1 more kinds\n" in printed
    assert r"'x\x1b0' has .v1.jpg" in printed
    assert printed.count(" has .v1.jpg") == 19
    assert printed.endswith("  and 11 more\n")


def test_a_tar_that_gives_no_sample_is_named_with_what_is_in_it(folder: Path, pair) -> None:
    write_tar(folder / "val.tar", good(pair, "a"))
    write_tar(folder / "train.tar", [(f"pug_1.v2.{suffix}", b"x") for suffix in ("jpg", "png")])
    problem = problems_of(folder)
    assert "train.tar: none of its 2 members is a picture (.jpg or .jpeg) or a mask (.png)" in problem
    assert "it has .v2.jpg, .v2.png, such as of 'pug_1'. A key ends at the first dot" in problem
    write_tar(folder / "train.tar", [("README", b"x")])
    assert "none of its 1 members is a picture (.jpg or .jpeg) or a mask (.png); it has no file" in problems_of(folder)
    write_tar(folder / "train.tar", [])
    assert "train.tar: it has no members, only the mark of a tar's end: remove it" in problems_of(folder)
    (folder / "train.tar").unlink()
    write_tar(folder / "val.tar", [])
    assert "val.tar: it has no members" in problems_of(folder)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_some_readers_turn_is_refused(folder: Path, pair, make, orientation: int) -> None:
    """petseg reads the pixels as they lie; nobody can tell whether the mask was drawn over them or over the turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpg = make["encode"](make["rgb"](24), exif=exif)
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", pair(0)[1])])
    problem = problems_of(folder)
    assert f"sample a: a.jpg has the EXIF orientation {orientation}: some readers turn it" in problem
    exif[0x0112] = 1
    jpg = make["encode"](make["rgb"](24), exif=exif)
    write_tar(folder / "train.tar", [("a.jpg", jpg), ("a.png", pair(0)[1])])
    index_folder(folder, ForeignConfig())
    assert verify(folder) == []
