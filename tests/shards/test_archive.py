"""Shards as packing writes them: headers are tarfile's own, and only a whole one looks whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.archive import (
    BLOCK,
    CUT_OFF,
    END_OF_ARCHIVE,
    MAX_OCTAL_SIZE,
    Found,
    ShardWriter,
    find_members,
    header_at,
    render_header,
    render_member,
)
from shards.index import load_index


@given(
    name=st.text(st.characters(codec="ascii", exclude_characters="\0/"), min_size=1, max_size=100),
    size=st.integers(0, MAX_OCTAL_SIZE),
)
@example(name="k" * 99, size=MAX_OCTAL_SIZE)
@example(name="k" * 100, size=0)
@example(name="é.jpg", size=1)
def test_a_header_is_tarfiles_own(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    assert render_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("error", [None, KeyError("pug_2"), OSError(errno.EIO, "Input/output error")])
def test_only_a_shard_that_was_written_to_its_end_is_closed_and_indexed(
    tmp_path: Path, error: Exception | None
) -> None:
    ended = pytest.raises(type(error), match=r"pug_2|train-000000\.tar") if error else contextlib.nullcontext()
    with ended, ShardWriter(tmp_path, "train-000000.tar", "train") as writer:
        writer.add("pug_1", b"picture", b"mask", b"{}")
        if error:
            raise error
    content = (tmp_path / "train-000000.tar").read_bytes()
    members = 3 * 2 * 512  # each a header and a block
    assert len(content) == members + (0 if error else len(END_OF_ARCHIVE))
    assert (writer.shard is None) == bool(error)
    assert (tmp_path / "train-000000.index.json").exists() != bool(error)
    if writer.shard:
        assert (writer.shard.sha256, writer.shard.num_bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_shard_knows_each_member_and_itself(tmp_path: Path, synced: list[str]) -> None:
    contents = {"a": (b"j" * 513, b"", b"{}"), "b": (b"k", b"m" * 512, b"[]")}
    with ShardWriter(tmp_path, "val-000000.tar", "val") as writer:
        for key, files in contents.items():
            writer.add(key, *files)
    assert writer.shard is not None
    assert (writer.shard.name, writer.shard.split, writer.shard.num_samples) == ("val-000000.tar", "val", 2)
    data = (tmp_path / "val-000000.tar").read_bytes()
    samples = load_index(tmp_path, "val-000000.tar")
    assert {s.key: tuple(data[m.offset : m.offset + m.num_bytes] for m in (s.jpg, s.png, s.json)) for s in samples} == (
        contents
    )
    assert [m.crc32 for s in samples for _, m in s.members()] == [
        zlib.crc32(c) for files in contents.values() for c in files
    ]
    with tarfile.open(tmp_path / "val-000000.tar") as tar:
        assert [(info.name, info.mtime, info.mode, info.uid) for info in tar] == [
            (f"{key}.{kind}", 0, 0o644, 0) for key in contents for kind in ("jpg", "png", "json")
        ]
    index = (tmp_path / "val-000000.index.json").read_bytes()
    assert writer.shard.index_sha256 == hashlib.sha256(index).hexdigest()
    assert synced[0] == "val-000000.tar"  # before the index, which says that it is whole
    assert len(synced) == 2


@pytest.mark.parametrize(("num_bytes", "padding"), [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)])
def test_a_member_is_padded_to_whole_blocks(num_bytes: int, padding: int) -> None:
    header, data, zeros = render_member("a.jpg", b"x" * num_bytes)
    assert (header, data, zeros) == (render_header("a.jpg", num_bytes), b"x" * num_bytes, bytes(padding))


@pytest.mark.parametrize(("name", "num_bytes"), [("k" * 101, 0), ("a", MAX_OCTAL_SIZE + 1)])
def test_what_fits_into_no_header_is_refused(name: str, num_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"(is too long|overflow in number field)$"):
        render_header(name, num_bytes)


def test_a_long_path_is_divided_as_tarfile_does_it() -> None:
    info = tarfile.TarInfo(f"{'d' * 90}/{'k' * 90}")
    info.size, info.mtime, info.mode = 7, 0, 0o644
    assert render_header(info.name, 7) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_disk_that_is_full_when_a_shard_is_closed_is_told_too(small_disk: Callable[[int], Path]) -> None:
    """What is left in the buffer does not fit."""
    folder = small_disk(16 * 1024)
    (folder / "other").write_bytes(bytes(16 * 1024))
    said = rf"No space left on device: '{folder / 'train-000000.tar'}'"
    with pytest.raises(OSError, match=said), ShardWriter(folder, "train-000000.tar", "train") as writer:
        writer.add("a", b"x" * 700, b"", b"")
    assert writer.shard is None


def test_a_full_disk_is_told_with_the_shards_name(small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(16 * 1024)
    with (
        pytest.raises(OSError, match=rf"No space left on device: '{folder / 'train-000000.tar'}'"),
        ShardWriter(folder, "train-000000.tar", "train") as writer,
    ):
        writer.add("a", b"x" * 64 * 1024, b"", b"")
    assert writer.shard is None
    assert [path.name for path in folder.iterdir()] == ["train-000000.tar"]


def test_what_stands_where_a_header_should_is_told() -> None:
    data = b"".join(render_member("a.jpg", b"x")) + END_OF_ARCHIVE
    view = memoryview(data)
    assert header_at(view, 0) == Found("a.jpg", 512, 1, True)
    assert header_at(view, 512) == "damaged"
    assert header_at(view, 1024) == "zeroed"
    assert header_at(view, len(data) - 511) == header_at(view, len(data)) == header_at(view, 9999) == CUT_OFF
    assert header_at(memoryview(data[:511]), 0) == CUT_OFF
    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE
    assert header_at(memoryview(folder.tobuf()), 0) == Found("d", 512, 0, False)


def test_members_behind_what_is_damaged_are_found_and_nothing_else() -> None:
    names = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    data = bytearray(b"".join(b"".join(render_member(name, name.encode() * 200)) for name in names) + END_OF_ARCHIVE)
    size = BLOCK + 1024
    at = [number * size for number in range(4)]
    data[at[0]] ^= 1  # damaged
    data[at[1] : at[1] + BLOCK] = bytes(BLOCK)
    link = tarfile.TarInfo("c.jpg")
    link.type, link.size = tarfile.LNKTYPE, 0
    data[at[2] : at[2] + BLOCK] = link.tobuf(tarfile.USTAR_FORMAT)
    assert list(find_members(memoryview(data))) == [Found("d.jpg", at[3] + BLOCK, 1000, True)]
    assert list(find_members(memoryview(data[: at[3] + BLOCK]))) == [Found("d.jpg", at[3] + BLOCK, 1000, True)]
    assert list(find_members(memoryview(data[: at[3] + BLOCK - 1]))) == []


def test_a_header_within_a_members_data_is_none() -> None:
    inner = b"".join(render_member("inner.jpg", b"x")) + b"more"
    data = b"".join([*render_member("a.jpg", inner), *render_member("b.jpg", b"")]) + END_OF_ARCHIVE
    assert [found.name for found in find_members(memoryview(data))] == ["a.jpg", "b.jpg"]
