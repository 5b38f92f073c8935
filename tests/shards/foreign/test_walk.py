"""The members of a tar as they are walked, and the words for where it ends too early."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import pytest

from shards.archive import BLOCK
from shards.foreign import walk
from shards.foreign.walk import crc32_of, walk_tar
from tests.shards.foreign_tars import write_tar

BOTH = ["a.txt", "b.txt"]
END = 2560  # of a file of one block and one of two, each behind a header of a block


def walked(content: bytes, path: Path) -> tuple[list[str], list[str]]:
    """The names of the members, and the problems."""
    path.write_bytes(content)
    problems: list[str] = []
    with path.open("rb") as file:
        return [info.name for info in walk_tar(file, problems.append)], problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.tar"


@pytest.fixture
def whole(path: Path) -> bytes:
    """a.txt with one byte and b.txt with 600, then zeros to the next 10,240 bytes."""
    write_tar(path, [("a.txt", b"a"), ("b.txt", b"b" * 600)], tarfile.USTAR_FORMAT)
    return path.read_bytes()


def test_whole_tars_end_in_at_least_one_block_of_zeros(path: Path, whole: bytes) -> None:
    for zeros in (BLOCK, 2 * BLOCK, 20 * BLOCK, 20 * BLOCK + 7):
        assert walked(whole[:END] + bytes(zeros), path) == (BOTH, [])


@pytest.mark.parametrize(
    ("size", "names", "problem"),
    [
        (0, [], "damaged, or not a tar (empty file); the last member that is whole is none"),
        (1024, ["a.txt"], "cut short: 1024 bytes without the mark of a tar's end; the last member is a.txt"),
        (1536, ["a.txt"], "cut short: b.txt is cut off after 0 bytes"),
        (2135, ["a.txt"], "cut short: b.txt is cut off after 599 bytes"),
        (END - 1, BOTH, "damaged, or not a tar (unexpected end of data); the last member that is whole is b.txt"),
        (END, BOTH, "cut short: 2560 bytes without the mark of a tar's end; the last member is b.txt"),
        (END + 511, BOTH, "cut short: 3071 bytes without the mark of a tar's end; the last member is b.txt"),
    ],
)
def test_a_cut_tar_is_named_with_its_last_member(
    path: Path, whole: bytes, size: int, names: list[str], problem: str
) -> None:
    assert walked(whole[:size], path) == (names, [problem])


def test_a_member_that_ends_with_the_file_is_whole(path: Path) -> None:
    write_tar(path, [("a.txt", b"a" * 2 * BLOCK)], tarfile.USTAR_FORMAT)
    problem = "cut short: 1536 bytes without the mark of a tar's end; the last member is a.txt"
    assert walked(path.read_bytes()[: 3 * BLOCK], path) == (["a.txt"], [problem])


def test_names_that_are_no_text_are_shown_by_their_bytes(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("\xff\xfc.txt"))
    assert walked(path.read_bytes(), path) == (["\\xff\\xfc.txt"], [])


def test_a_header_that_is_damaged_behind_the_first_is_told(path: Path, whole: bytes) -> None:
    damaged = whole[:1024] + b"?" + whole[1025:]
    problem = "damaged header at byte 1024, behind the member a.txt"
    assert walked(damaged, path) == (["a.txt"], [problem])


@pytest.mark.parametrize("chunk_bytes", [BLOCK, 1 << 20])
def test_what_stands_behind_the_end_is_told(
    path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(walk, "CHUNK_BYTES", chunk_bytes)
    problem = f"members behind the end of the tar at byte {END}: tars that were joined? webdataset skips them"
    assert walked(whole[:END] + bytes(9 * BLOCK) + b"x", path) == (BOTH, [problem])


@pytest.mark.parametrize("chunk_bytes", [1, 7, 600, 1 << 20])
def test_a_checksum_is_that_of_the_part_and_leaves_the_position(
    path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(walk, "CHUNK_BYTES", chunk_bytes)
    content = bytes(number % 251 for number in range(2000))
    path.write_bytes(content)
    with path.open("rb") as file:
        file.seek(5)
        assert crc32_of(file, 100, 1300) == zlib.crc32(content[100:1400])
        assert crc32_of(file, 1900, 1000) == zlib.crc32(content[1900:])  # of what there is
        assert crc32_of(file, 0, 0) == 0
        assert file.tell() == 5


def test_a_member_has_headers_of_its_own_however_many_there_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of one member's, not of all together."""
    monkeypatch.setattr(walk, "MAX_HEADER_BYTES", 4 * BLOCK)
    names = [f"{'d' * 120}/{number}.txt" for number in range(40)]  # each with a header for its long name
    write_tar(path, [(name, b"x") for name in names], tarfile.GNU_FORMAT)
    assert walked(path.read_bytes(), path) == (names, [])
    write_tar(path, [("d" * 2000, b"x")], tarfile.GNU_FORMAT)
    too_long = "the headers of a member are longer than 2,048 bytes"
    assert walked(path.read_bytes(), path) == (
        [],
        [f"damaged, or not a tar ({too_long}); the last member that is whole is none"],
    )


def test_headers_are_read_within_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_HEADER_BYTES", 10)
    headers = walk._Headers(io.BytesIO(b"0123456789abcdef"))
    assert headers.read(4) == b"0123"
    with pytest.raises(tarfile.ReadError, match=r"^the headers of a member are longer than 10 bytes$"):
        headers.read(7)
    assert headers.read(6) == b"456789"
    headers.renew(spent=7)
    with pytest.raises(tarfile.ReadError):
        headers.read(4)
    assert (headers.read(3), headers.tell()) == (b"abc", 13)
    with pytest.raises(tarfile.ReadError):
        headers.read(-1)
    assert (headers.seek(2), headers.tell()) == (2, 2)
    assert headers.seek(0) == 0
    with pytest.raises(tarfile.ReadError, match=r"^the size of a member is negative$"):
        headers.seek(-1)
