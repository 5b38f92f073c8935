"""Shards as packing writes them: headers are tarfile's own, and only a whole one looks whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.archive import END_OF_ARCHIVE, MAX_OCTAL_SIZE, ShardWriter, render_header


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
