"""The tar headers that packing writes are tarfile's own, byte for byte."""

from __future__ import annotations

import tarfile

from hypothesis import example, given
from hypothesis import strategies as st

from shards.archive import MAX_OCTAL_SIZE, render_header


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
