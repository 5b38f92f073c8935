"""How members of a tar are named, against webdataset's own reading of names."""

from __future__ import annotations

import pytest
from webdataset.tariterators import base_plus_ext

from shards.archive import Found, render_header
from shards.layout import SHORTENED_AT, Layout, foreign_layout, layout_of, split_name
from shards.manifest import THREE_VALUES, Manifest, Source


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


def test_kinds_of_members_are_told_by_their_suffix_in_any_case() -> None:
    ours, foreign = Layout(), foreign_layout("image.jpg", "seg.png", THREE_VALUES)
    suffixes = ("jpg", "JPG", "jpeg", "png", "json", "txt", "image.jpg", "SEG.png")
    assert [ours.kind_of(suffix) for suffix in suffixes] == ["jpg", "jpg", None, "png", "json", None, None, None]
    assert [foreign.kind_of(suffix) for suffix in suffixes] == [None, None, None, None, "json", None, "jpg", "png"]
    assert foreign_layout("jpg", "png", THREE_VALUES).image_suffixes == ("jpg", "jpeg")
    assert foreign_layout("jpeg", "png", THREE_VALUES).image_suffixes == ("jpeg",)


def test_a_layout_is_that_of_the_manifest() -> None:
    values = {name: value + 3 for name, value in THREE_VALUES.items()}
    manifest = Manifest(Source("x", "", values), {"image_suffix": "a", "mask_suffix": "b"}, {}, ())
    assert layout_of(manifest) == Layout(("jpg",), ("png",), values, is_foreign=False)
    manifest.packer["foreign"] = True
    assert layout_of(manifest) == Layout(("a",), ("b",), values, is_foreign=True)
    del manifest.packer["mask_suffix"]
    with pytest.raises(ValueError, match=r"^the manifest of a foreign set lacks 'mask_suffix': run --index again$"):
        layout_of(manifest)


def test_a_header_of_ours_is_known_by_every_byte_and_a_foreign_one_by_its_name() -> None:
    ours, foreign = Layout(), foreign_layout("jpg", "seg.png", THREE_VALUES)
    header = render_header("a.png", 7)
    found = Found("a.png", 512, 7, True)
    assert ours.is_header_of(header, found, "a.png", 7)
    assert not ours.is_header_of(header, found, "a.png", 8)
    assert not ours.is_header_of(header[:-1] + b"x", found, "a.png", 7)
    names = ("x/a.seg.png", "a.SEG.PNG", "a.png", "b.seg.png", "a.jpg")
    told = [foreign.is_header_of(b"", Found(name, 512, 7, True), "a.png", 7) for name in names]
    assert told == [True, True, False, False, False]
    for letters, is_shortened in ((SHORTENED_AT - 1, False), (SHORTENED_AT, True)):
        assert foreign.is_header_of(b"", Found("n" * letters, 512, 7, True), "a.png", 7) == is_shortened
    assert foreign.is_header_of(b"", Found("ü" * (SHORTENED_AT // 2), 512, 7, True), "a.png", 7)  # it counts bytes
