"""Every kind of damage is found, and named by shard and sample; stock webdataset notices one kind of six."""

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.archive import BLOCK, ShardWriter
from shards.command import OK, WRONG_USE, run_command
from shards.index import Sample, index_name, load_index
from shards.integrity.damage import Damage, check_shard
from shards.manifest import MANIFEST_NAME, Manifest, Source, load_manifest, save_manifest, split_of_keys
from shards.verify import DAMAGED, main, verify

SHARD = "train-000001.tar"
VICTIM = 4  # of 9 samples


def cut_at_member(data: bytearray, sample: Sample) -> None:
    del data[sample.jpg.offset - BLOCK :]


def cut_in_header(data: bytearray, sample: Sample) -> None:
    del data[sample.jpg.offset - BLOCK + 100 :]


def flip_in_header(data: bytearray, sample: Sample) -> None:
    data[sample.jpg.offset - BLOCK + 2] ^= 1


def zero_header(data: bytearray, sample: Sample) -> None:
    data[sample.jpg.offset - BLOCK : sample.jpg.offset] = bytes(BLOCK)


def flip_in_data(data: bytearray, sample: Sample) -> None:
    data[sample.jpg.offset + sample.jpg.num_bytes // 2] ^= 1


def cut_in_data(data: bytearray, sample: Sample) -> None:
    del data[sample.jpg.offset + sample.jpg.num_bytes // 2 :]


DAMAGE = {
    cut_at_member: "the sample is gone",
    cut_in_header: "jpg is cut off",
    flip_in_header: "the header of {key}.jpg is damaged, its data are whole",
    zero_header: "the header of {key}.jpg is zeroed, its data are whole",
    flip_in_data: "the data of {key}.jpg are altered",
    cut_in_data: "{key}.jpg is cut off after",
}


def damage(folder: Path, kind, shard: str = SHARD, victim: int = VICTIM) -> Sample:
    sample = load_index(folder, shard)[victim]
    data = bytearray((folder / shard).read_bytes())
    kind(data, sample)
    (folder / shard).write_bytes(data)
    return sample


def of_key(findings: list[Damage], key: str) -> list[Damage]:
    return [finding for finding in findings if finding.key == key]


def test_a_whole_set(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(packed) == verify(packed, decode=False) == verify(packed, num_workers=2) == []
    assert run_command(main, [str(packed)]) == OK
    assert capsys.readouterr().out.startswith("whole: 27 train, 3 val, 30 test samples in 7 shards, hash ")


@pytest.mark.parametrize(("kind", "problem"), DAMAGE.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_six_kinds_of_damage(shard_set: Path, kind, problem: str) -> None:
    sample = damage(shard_set, kind)
    findings = verify(shard_set)
    assert {finding.shard for finding in findings} == {SHARD}
    (finding,) = of_key(findings, sample.key)
    assert problem.format(key=sample.key) in finding.problem
    assert finding.offset == sample.jpg.offset
    lost = {s.key for s in load_index(shard_set, SHARD)[VICTIM:]} if "cut" in kind.__name__ else {sample.key}
    assert {f.key for f in findings if f.key} == lost


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind is not cut_in_data], ids=lambda kind: kind.__name__)
def test_webdataset_says_nothing(shard_set: Path, kind) -> None:
    damage(shard_set, kind)
    whole = len(load_index(shard_set, SHARD))
    samples = list(webdataset.WebDataset([str(shard_set / SHARD)], shardshuffle=False))
    assert len(samples) < whole or kind is flip_in_data


def test_a_missing_shard_names_its_samples(shard_set: Path) -> None:
    keys = {sample.key for sample in load_index(shard_set, SHARD)}
    (shard_set / SHARD).unlink()
    findings = verify(shard_set)
    assert Damage(SHARD, "", None, "the shard is missing") in findings
    assert {finding.key for finding in findings if finding.key} == keys


def test_an_empty_shard(shard_set: Path) -> None:
    (shard_set / SHARD).write_bytes(b"")
    assert any(finding.problem.startswith("cut short: 0 of") for finding in verify(shard_set))


def test_bytes_too_many_and_bytes_of_nobody(shard_set: Path) -> None:
    whole = (shard_set / SHARD).read_bytes()
    (shard_set / SHARD).write_bytes(whole + b"x")
    (finding,) = verify(shard_set)
    assert "1 too many" in finding.problem
    padding = next(
        m.offset + m.num_bytes for s in load_index(shard_set, SHARD) for _, m in s.members() if m.num_bytes % BLOCK
    )
    (shard_set / SHARD).write_bytes(whole[:padding] + b"x" + whole[padding + 1 :])
    (finding,) = verify(shard_set)
    assert "all samples are whole: padding or end" in finding.problem
    assert finding.offset == padding


def test_a_missing_index(shard_set: Path) -> None:
    (shard_set / index_name(SHARD)).unlink()
    assert verify(shard_set) == [Damage(index_name(SHARD), "", None, "the index is missing")]


def test_an_altered_index_is_not_trusted(shard_set: Path) -> None:
    path = shard_set / index_name(SHARD)
    path.write_text(path.read_text().replace("512,", "513,", 1))
    (finding,) = verify(shard_set)
    assert "the index was altered" in finding.problem


def test_shard_and_index_damaged(shard_set: Path) -> None:
    sample = damage(shard_set, cut_in_data)
    (shard_set / index_name(SHARD)).write_text("[]")
    findings = verify(shard_set)
    assert any("4 of 9 samples are found" in finding.problem for finding in findings)
    assert f"{sample.key}.jpg is cut off" in [finding.problem for finding in of_key(findings, sample.key)]


def test_a_stray_index(shard_set: Path) -> None:
    shutil.copy(shard_set / "train-000000.index.json", shard_set / "train-000009.index.json")
    assert verify(shard_set) == [Damage("train-000009.index.json", "", None, "is not in the manifest")]


def test_a_stray_shard(shard_set: Path) -> None:
    (shard_set / "train-000009.tar").touch()
    assert verify(shard_set) == [Damage("train-000009.tar", "", None, "is not in the manifest")]


def test_a_missing_mask_is_named(shard_set: Path) -> None:
    """Somebody packed the tar again and lost one mask: all members behind it moved."""
    sample = load_index(shard_set, SHARD)[VICTIM]
    with tarfile.open(shard_set / SHARD) as old:
        contents = [(member, old.extractfile(member).read()) for member in old.getmembers()]
    with tarfile.open(shard_set / SHARD, "w", format=tarfile.USTAR_FORMAT) as new:
        for member, content in contents:
            if member.name != f"{sample.key}.png":
                new.addfile(member, io.BytesIO(content))
    findings = verify(shard_set)
    (finding,) = of_key(findings, sample.key)
    assert f"{sample.key}.png is missing" in finding.problem
    later = load_index(shard_set, SHARD)[VICTIM + 1]
    assert "(whole), not where the index says" in of_key(findings, later.key)[0].problem


def test_the_manifest_is_covered(shard_set: Path) -> None:
    path = shard_set / MANIFEST_NAME
    path.write_text(path.read_text().replace("synthetic-pets", "real-pets"))
    (finding,) = verify(shard_set)
    assert "altered" in finding.problem
    assert run_command(main, [str(shard_set)]) == DAMAGED


def test_a_manifest_of_other_samples(shard_set: Path) -> None:
    manifest = load_manifest(shard_set)
    splits = {**manifest.splits, "val": split_of_keys(["a", "b", "c"])}
    save_manifest(replace(manifest, splits=splits), shard_set)
    (finding,) = verify(shard_set)
    assert finding.problem.startswith("split val has 3 samples with key XOR")


def write_set(folder: Path, *samples: tuple[str, bytes, bytes, bytes]) -> None:
    """A shard set in which every checksum is right, whatever the samples are."""
    folder.mkdir()
    with ShardWriter(folder, "train-000000.tar", "train") as writer:
        for sample in samples:
            writer.add(*sample)
    splits = {"train": split_of_keys(key for key, *_ in samples)}
    save_manifest(Manifest(Source("x", "y"), {}, splits, (writer.shard,)), folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"jpg": b"no"}, "a.jpg cannot be decoded"),
        ({"png": b"no"}, "a.png cannot be decoded (it is no PNG)"),
        ({"altered": -13}, "a.png is damaged (the chunk at byte 33 does not match its checksum)"),
        ({"altered": -1}, "a.png is damaged (the chunk at byte "),
        ({"size": (3, 4)}, "a.png is 3 x 4, its picture 24 x 16"),
        ({"value": 9}, "a.png has other values than"),
        ({"json": b"no"}, "a.json cannot be read"),
        ({"json": b'{"key": "b"}'}, "a.json is of 'b'"),
    ],
)
def test_what_only_decoding_shows(tmp_path: Path, make, change: dict, problem: str) -> None:
    trimap = Image.new("L", change.get("size", (24, 16)), change.get("value", 2))
    jpg = change.get("jpg", make["encode"](make["rgb"]()))
    png = bytearray(change.get("png", make["encode"](trimap, "PNG")))
    if place := change.get("altered"):
        png[place] ^= 1  # of a checksum: the pixels are those that were written
    write_set(tmp_path / "set", ("a", jpg, bytes(png), change.get("json", b'{"key": "a"}')))
    (finding,) = verify(tmp_path / "set")
    assert problem in finding.problem
    assert (finding.shard, finding.key, finding.offset) == ("train-000000.tar", "a", 512)
    assert verify(tmp_path / "set", decode=False) == []


def test_a_key_twice(tmp_path: Path, make) -> None:
    sample = ("a", make["encode"](make["rgb"]()), make["encode"](make["trimap"](), "PNG"), b'{"key": "a"}')
    write_set(tmp_path / "set", sample, sample)
    assert any("the key is there 2 times" in finding.problem for finding in verify(tmp_path / "set"))


@given(st.data())
def test_no_flipped_byte_goes_unnoticed(packed: Path, tmp_path_factory: pytest.TempPathFactory, data) -> None:
    """Any byte of a shard: the findings name the sample whose header or data it lies in."""
    folder = tmp_path_factory.mktemp("flipped")
    shard = next(shard for shard in load_manifest(packed).shards if shard.name == SHARD)
    content = bytearray((packed / SHARD).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / SHARD).write_bytes(content)
    (folder / index_name(SHARD)).write_bytes((packed / index_name(SHARD)).read_bytes())
    findings = check_shard(shard, folder, decode=False).findings
    assert findings
    for sample in load_index(packed, SHARD):
        is_in = any(m.offset - BLOCK <= place < m.offset + m.num_bytes for _, m in sample.members())
        assert is_in == (sample.key in {finding.key for finding in findings})


def test_exit_codes_and_the_table(shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(tmp_path / "nowhere")]) == WRONG_USE
    assert "python -m shards.pack" in capsys.readouterr().err
    sample = damage(shard_set, cut_at_member, victim=1)
    assert run_command(main, [str(shard_set), "--show", "3"]) == DAMAGED
    printed = capsys.readouterr().out
    assert "9 findings" in printed
    assert SHARD in printed
    assert sample.key in printed.replace("\n", "")
    assert "and 6 more" in printed


def test_sha256_of_the_manifest_is_that_of_the_file(packed: Path) -> None:
    for shard in json.loads((packed / MANIFEST_NAME).read_text())["shards"]:
        assert hashlib.sha256((packed / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    assert np.unique([shard.num_bytes % BLOCK for shard in load_manifest(packed).shards]).tolist() == [0]


def test_a_header_byte_outside_its_checksum(shard_set: Path) -> None:
    """tarfile and GNU tar read this header as if nothing had happened."""

    def flip_behind_the_checksum(data: bytearray, sample: Sample) -> None:
        data[sample.jpg.offset - BLOCK + 155] ^= 1

    sample = damage(shard_set, flip_behind_the_checksum)
    assert f"the header of {sample.key}.jpg is altered" in of_key(verify(shard_set), sample.key)[0].problem


@pytest.mark.parametrize("from_pictures", [True, False], ids=["pictures", "copy"])
@pytest.mark.parametrize("kind", DAMAGE, ids=lambda kind: kind.__name__)
def test_every_kind_of_damage_is_repaired(
    shard_set: Path, packed: Path, drawn: Path, capsys, kind, from_pictures
) -> None:
    damage(shard_set, kind)
    inodes = {path.name: path.stat().st_ino for path in shard_set.iterdir() if path.name != SHARD}
    assert run_command(main, [str(shard_set), "--repair", str(drawn if from_pictures else packed)]) == OK
    printed = capsys.readouterr().out
    assert printed.startswith("whole: 27 train, 3 val, 30 test samples in 7 shards, hash ")
    assert printed.endswith(f"rebuilt: {SHARD}\n")
    assert {path.name: path.read_bytes() for path in shard_set.iterdir()} == {
        path.name: path.read_bytes() for path in packed.iterdir()
    }
    assert {path.name: path.stat().st_ino for path in shard_set.iterdir() if path.name != SHARD} == inodes


def test_a_small_file_that_claims_to_be_huge(tmp_path: Path, make) -> None:
    """The header alone is asked: decoding would take memory for what it claims."""
    jpg = bytearray(make["encode"](make["rgb"]()))
    start = jpg.index(b"\xff\xc0") + 5
    jpg[start : start + 4] = (6000).to_bytes(2, "big") + (5000).to_bytes(2, "big")
    png = bytearray(make["encode"](make["trimap"](), "PNG"))
    png[16:24] = (60000).to_bytes(4, "big") + (500).to_bytes(4, "big")
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    good = make["encode"](make["rgb"](), "JPEG")
    write_set(tmp_path / "a", ("a", bytes(jpg), make["encode"](make["trimap"](), "PNG"), b'{"key": "a"}'))
    write_set(tmp_path / "b", ("a", good, bytes(png), b'{"key": "a"}'))
    assert [f.problem for f in verify(tmp_path / "a")] == ["a.jpg is 5000 x 6000, more than 25 megapixels"]
    assert [f.problem for f in verify(tmp_path / "b")] == ["a.png is 60000 x 500, more than 25 megapixels"]
