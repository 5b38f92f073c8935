"""Entries of a large JSON file are found where the parser of the whole file would find them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.sources import json_spans
from shards.sources.json_spans import find_entries, map_file

TRICKY = {
    "info": {"images": [{"not": "ours"}], "text": 'a "quoted" ] } \\ end'},
    "empty": [],
    "number": -1.5e3,
    "none": None,
    "images": [{"id": 1, "name": 'x"},{"'}, {"nested": [{"a": [1, [2]]}, {}]}, [{"id": 3}]],
    "text": "[{",
    "other": [{"id": 9}],
    "annotations": [{"id": 2}],
}


def entries_of(path: Path, content: bytes | str, *sections: str) -> list[tuple[str, object]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with map_file(path) as data:
        return [(section, json.loads(data[start:end])) for section, start, end in find_entries(data, sections)]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_entries_are_those_of_the_top_level_lists(tmp_path: Path, indent: int | None) -> None:
    text = json.dumps(TRICKY, indent=indent)
    images = [("images", entry) for entry in TRICKY["images"]]
    assert entries_of(tmp_path / "a.json", text, "images", "annotations") == [*images, ("annotations", {"id": 2})]
    assert entries_of(tmp_path / "a.json", text, "annotations") == [("annotations", {"id": 2})]
    assert entries_of(tmp_path / "a.json", text, "empty", "nowhere") == []
    assert entries_of(tmp_path / "a.json", text.replace(": ", ":"), "images", "annotations")[0] == images[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "it is empty"),
        ("[1]", "it holds no object"),
        ('{"images": {"id": 1}}', "images is no list"),
        ('{"images": 7}', "images is no list"),
        ('{"images": [{"id": 1}, {"id"', "it is cut short"),
        ('{"images": [{"id": 1}', "it is cut short"),
        ('{"info": {"a": [', "it is cut short"),
        ('{"info": }', "no value at byte 9"),
        ('{"images": [{"id": 1}]', "it is cut short"),
        ('{"images": [{"id": 1}],', "it is cut short"),
        ('{"images": [{"id": 1}], "annot', "it is cut short"),
    ],
)
def test_what_is_no_such_file_is_told_apart(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        entries_of(tmp_path / "a.json", content, "images", "annotations")
    assert str(error.value) == problem


def test_an_entry_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are parsed as a whole: one that is the whole file would fill the memory."""
    text = f'{{"images": [{{"id": 1}}, {{"id": "{"x" * 40}"}}]}}'
    longest = len(f'{{"id": "{"x" * 40}"}}')
    monkeypatch.setattr(json_spans, "MAX_ENTRY_BYTES", longest)
    assert [entry for _, entry in entries_of(tmp_path / "a.json", text, "images")] == [{"id": 1}, {"id": "x" * 40}]
    monkeypatch.setattr(json_spans, "MAX_ENTRY_BYTES", longest - 1)
    with pytest.raises(ValueError, match=rf"^an entry has {longest} bytes$"):
        entries_of(tmp_path / "a.json", text, "images")
