"""All findings of a small shard, word for word and byte for byte."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shards.archive import END_OF_ARCHIVE, ShardWriter, render_header, render_member
from shards.index import NO_MEMBER, Member, Sample, index_name, load_index, save_index
from shards.integrity.damage import Damage, Report, check_shard, samples_in_tar
from shards.layout import foreign_layout
from shards.manifest import THREE_VALUES, Shard

NAME = "train-000000.tar"
INDEX = index_name(NAME)
A_JPG, A_PNG, A_JSON, B_JPG, B_PNG = 512, 2048, 3072, 4096, 5632  # where the members' data begin
END = 7168 + len(END_OF_ARCHIVE)
FOREIGN = foreign_layout("jpg", "seg.png", THREE_VALUES)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Two samples of a picture of 600 bytes, a mask of 10, and facts of 2."""
    with ShardWriter(tmp_path, NAME, "train") as writer:
        for key in ("a", "b"):
            writer.add(key, key.encode() * 600, b"m" * 10, b"{}")
    assert writer.shard is not None
    assert writer.shard.num_bytes == END
    return writer.shard


def cut(place: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[place:]

    return change


def put(place: int, content: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place : place + len(content)] = content

    return change


def both(*changes: Callable[[bytearray], None]) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        for one in changes:
            one(data)

    return change


def shift(data: bytearray) -> None:
    """A file that nobody asked for before all others, which moves them by 1024 bytes: masks' headers into pictures."""
    data[:0] = b"".join(render_member("x.txt", b"x"))


def lies(name: str, place: int, how: str) -> str:
    return f"{name} lies at byte {place} ({how}), not where the index says"


OTHER_BYTES = ("", None, "its bytes do not match its sha256")
PADDING = "its bytes do not match its sha256, but all samples are whole: padding or end of the archive was altered"


@pytest.mark.parametrize(
    ("change", "findings"),
    [
        (cut(B_JPG + 100), [
            ("", B_JPG + 100, f"cut short: {B_JPG + 100} of {END} bytes"),
            ("b", B_JPG, "b.jpg is cut off after 100 of 600 bytes; b.png is gone; b.json is gone"),
        ]),
        (cut(B_JPG - 512), [
            ("", B_JPG - 512, f"cut short: {B_JPG - 512} of {END} bytes"), ("b", B_JPG, "the sample is gone"),
        ]),
        (cut(B_JPG - 511), [
            ("", B_JPG - 511, f"cut short: {B_JPG - 511} of {END} bytes"),
            ("b", B_JPG, "b.jpg is cut off; b.png is gone; b.json is gone"),
        ]),
        (cut(B_JPG), [
            ("", B_JPG, f"cut short: {B_JPG} of {END} bytes"),
            ("b", B_JPG, "b.jpg is cut off after 0 of 600 bytes; b.png is gone; b.json is gone"),
        ]),
        (cut(B_PNG - 512), [
            ("", B_PNG - 512, f"cut short: {B_PNG - 512} of {END} bytes"),
            ("b", B_PNG, "b.png is gone; b.json is gone"),
        ]),
        (cut(END - 1), [("", END - 1, f"cut short: {END - 1} of {END} bytes")]),
        (put(END, b"xyz"), [("", END, f"{END + 3} bytes, 3 too many")]),
        (put(A_JPG + 600, b"x"), [("", A_JPG + 600, PADDING)]),
        (put(END - 1, b"x"), [("", 7168 - 510, PADDING)]),  # where the last member's data end
        (put(A_JPG + 599, b"x"), [OTHER_BYTES, ("a", A_JPG, "the data of a.jpg are altered")]),
        (put(A_PNG - 512, bytes(512)), [
            OTHER_BYTES, ("a", A_PNG, "the header of a.png is zeroed, its data are whole"),
        ]),
        (both(put(A_PNG - 512, bytes(512)), put(B_PNG - 512, b"x"), put(A_PNG, b"x"), put(B_PNG, b"x")), [
            OTHER_BYTES, ("a", A_PNG, "the header of a.png is zeroed, its data too are altered"),
            ("b", B_PNG, "the header of b.png is damaged, its data too are altered"),
        ]),
        (both(put(A_JPG, b"x"), put(A_JSON, b"x")), [
            OTHER_BYTES, ("a", A_JPG, "the data of a.jpg are altered; the data of a.json are altered"),
        ]),
        (put(A_PNG - 512, render_header("c.png", 10)), [OTHER_BYTES, ("a", A_PNG, "a.png is missing")]),
        (put(A_PNG - 512, render_header("a.png", 11)), [
            OTHER_BYTES, ("a", A_PNG, "the header of a.png is altered, its data are whole"),
        ]),
        (both(put(B_JPG, b"x"), shift), [
            ("", END, f"{END + 1024} bytes, 1024 too many"),
            ("a", A_JPG, "; ".join([
                lies("a.jpg", 1536, "whole"), "the header of a.png is damaged, its data too are altered",
                lies("a.json", 4096, "whole"),
            ])),
            ("b", B_JPG, "; ".join([
                lies("b.jpg", 5120, "altered"), "the header of b.png is damaged, its data too are altered",
                lies("b.json", 7680, "whole"),
            ])),
        ]),
    ],
)  # fmt: skip
def test_findings_name_sample_and_byte(
    shard: Shard, tmp_path: Path, change: Callable[[bytearray], None], findings: list[tuple[str, int | None, str]]
) -> None:
    data = bytearray((tmp_path / NAME).read_bytes())
    change(data)
    (tmp_path / NAME).write_bytes(data)
    wanted = tuple(Damage(NAME, *finding) for finding in findings)
    assert check_shard(shard, tmp_path, decode=False) == Report(shard, ("a", "b"), wanted)


def test_only_samples_whose_bytes_are_whole_are_decoded(shard: Shard, tmp_path: Path) -> None:
    data = bytearray((tmp_path / NAME).read_bytes())
    put(A_JPG, b"x")(data)
    (tmp_path / NAME).write_bytes(data)
    _, of_a, of_b = check_shard(shard, tmp_path, decode=True).findings
    assert of_a == Damage(NAME, "a", A_JPG, "the data of a.jpg are altered")
    assert (of_b.key, of_b.offset) == ("b", B_JPG)
    assert of_b.problem.startswith("b.jpg cannot be decoded (")


def test_a_shard_without_bytes_has_lost_all(shard: Shard, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"")
    assert check_shard(shard, tmp_path, decode=True).findings == (
        Damage(NAME, "", 0, f"cut short: 0 of {END} bytes"),
        Damage(NAME, "a", A_JPG, "the sample is gone"),
        Damage(NAME, "b", B_JPG, "the sample is gone"),
    )
    (tmp_path / NAME).unlink()
    assert check_shard(shard, tmp_path, decode=True) == Report(
        shard,
        ("a", "b"),
        (
            Damage(NAME, "", None, "the shard is missing"),
            Damage(NAME, "a", None, "lost with its shard"),
            Damage(NAME, "b", None, "lost with its shard"),
        ),
    )
    (tmp_path / INDEX).unlink()
    assert check_shard(shard, tmp_path, decode=True) == Report(
        shard, (), (Damage(INDEX, "", None, "the index is missing"), Damage(NAME, "", None, "the shard is missing"))
    )


def test_without_an_index_the_tar_tells_its_samples(shard: Shard, tmp_path: Path) -> None:
    """Whole, it lacks nothing else; cut, it tells what it still has."""
    assert samples_in_tar(tmp_path / NAME) == load_index(tmp_path, NAME)
    (tmp_path / INDEX).unlink()
    missing = Damage(INDEX, "", None, "the index is missing")
    assert check_shard(shard, tmp_path, decode=False) == Report(shard, ("a", "b"), (missing,))
    data = (tmp_path / NAME).read_bytes()
    for end, findings in (
        (B_PNG + 3, [
            Damage(NAME, "", B_PNG + 3, "the shard is damaged too: 1 of 2 samples are found, the last is b.png"),
            Damage(NAME, "b", B_PNG, "b.png is cut off"), Damage(NAME, "b", B_JPG, "b.json is missing"),
        ]),
        (A_PNG - 512, [
            Damage(NAME, "", A_PNG - 512, "the shard is damaged too: 0 of 2 samples are found, the last is a.jpg"),
            Damage(NAME, "a", A_JPG, "a.png is missing, a.json is missing"),
        ]),
        (0, [Damage(NAME, "", 0, "the shard is damaged too: 0 of 2 samples are found, the last is none")]),
    ):  # fmt: skip
        (tmp_path / NAME).write_bytes(data[:end])
        found = check_shard(shard, tmp_path, decode=False)
        assert found == Report(shard, ("a",) if end > B_JPG else (), (missing, *findings))


@pytest.mark.parametrize(("content", "is_known"), [("[]\n", False), ("[]\n", True), ("[1]\n", True)])
def test_an_index_is_trusted_where_the_manifest_knows_it(
    shard: Shard, tmp_path: Path, content: str, is_known: bool
) -> None:
    (tmp_path / INDEX).write_text(content)
    if is_known:
        shard = replace(shard, index_sha256=hashlib.sha256(content.encode()).hexdigest())
    report = check_shard(shard, tmp_path, decode=False)
    if not is_known:
        altered = "the index was altered: it does not match the manifest's sha256"
        assert report == Report(shard, ("a", "b"), (Damage(INDEX, "", None, altered),))
    elif content == "[]\n":
        assert report == Report(shard, (), (Damage(NAME, "", None, "the index lists 0 samples, the manifest 2"),))
    else:
        assert report.keys == ("a", "b")
        assert [finding.shard for finding in report.findings] == [INDEX]
        assert report.findings[0].problem.startswith(f"{tmp_path / INDEX} is damaged (")


def test_foreign_samples_may_lack_facts_and_lie_in_folders(tmp_path: Path) -> None:
    files = [("x/a.JPEG", b"a" * 600), ("x/a.txt", b"?"), ("x/a.seg.png", b"m" * 10), ("y/b.jpg", b"b" * 600)]
    data = b"".join(b"".join(render_member(*file)) for file in files) + END_OF_ARCHIVE
    (tmp_path / NAME).write_bytes(data)
    shard = Shard(NAME, "train", 1, len(data), hashlib.sha256(data).hexdigest(), "")
    missing = Damage(INDEX, "", None, "the index is missing")
    report = check_shard(shard, tmp_path, decode=False, layout=FOREIGN)
    assert report == Report(shard, ("a",), (missing, Damage(NAME, "b", 4096, "b.png is missing")))
    sample = Sample("a", Member(512, 600, zlib.crc32(b"a" * 600)), Member(3072, 10, zlib.crc32(b"m" * 10)), NO_MEMBER)
    shard = replace(shard, index_sha256=save_index([sample], tmp_path, NAME))
    assert check_shard(shard, tmp_path, decode=False, layout=FOREIGN) == Report(shard, ("a",), ())
    found = check_shard(shard, tmp_path, decode=False)  # as one of ours, whose members are named after the key
    assert [finding.problem for finding in found.findings] == ["a.jpg is missing; a.png is missing"]
    altered = bytearray(data)
    altered[sample.png.offset - 512 : sample.png.offset] = render_header("x/a.png", 10)
    (tmp_path / NAME).write_bytes(altered)
    found = check_shard(shard, tmp_path, decode=False, layout=FOREIGN)
    assert found.findings[1:] == (
        Damage(NAME, "a", sample.png.offset, "the header of a.png is altered, its data are whole"),
    )
