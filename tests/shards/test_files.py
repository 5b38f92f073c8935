"""JSON files that hold a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shards.files import read_as, read_json_object


@dataclass(frozen=True)
class Note:
    name: str
    count: int
    share: float = 0.5
    tags: list[str] = field(default_factory=list)


def test_fields_with_a_default_may_be_missing_and_a_whole_number_does_for_a_float(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text('{"name": "a", "count": 2, "share": 1}')
    assert read_as(Note, path, "delete it") == Note("a", 2, 1.0, [])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"name": "a", "count": "x"}', "is damaged"),
        ('{"name": "a", "count": "x", "share": 0.1}', "is damaged"),
        ('{"name": "a", "count": 2, "share": "x", "tags": []}', "is damaged"),
        ('{"name": "a"}', "was written by another version"),
        ('{"name": "a", "count": 2, "new": 1}', "was written by another version"),
        ('{"count": "x", "new": 1}', "was written by another version"),
    ],
)
def test_damage_is_told_from_another_versions_fields(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "note.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"note\.json {what} \(.*\): delete it$"):
        read_as(Note, path, "delete it")


@pytest.mark.parametrize("content", ["[]", "[1]", "7", '"a"', "null"])
def test_what_is_no_object_is_damage_with_the_next_step(tmp_path: Path, content: str) -> None:
    path = tmp_path / "note.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"note\.json is damaged \(it holds a \w+, not an object\): delete it"):
        read_json_object(path, "delete it")
    path.write_text("{}")
    assert read_json_object(path, "delete it") == {}
