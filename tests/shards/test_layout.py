"""How members of a tar are named, against webdataset's own reading of names."""

from __future__ import annotations

import pytest
from webdataset.tariterators import base_plus_ext

from shards.layout import split_name


@pytest.mark.parametrize(
    ("name", "key_and_suffix"),
    [
        ("pug_1.jpg", ("pug_1", "jpg")),
        ("pug_1.seg.png", ("pug_1", "seg.png")),
        ("v1.2/pug_1.jpg", ("v1.2/pug_1", "jpg")),
        ("set.jpg/README", ("", "")),  # the folder's dot is not the file's
        ("README", ("", "")),
        (".hidden", ("", "")),
        ("pug_1.", ("pug_1", "")),
    ],
)
def test_key_and_suffix_are_those_of_webdataset(name: str, key_and_suffix: tuple[str, str]) -> None:
    assert split_name(name) == key_and_suffix
    key, suffix = base_plus_ext(name)
    assert (key or "", suffix or "") == key_and_suffix
