"""The parts of a prediction on disk: which folders are parts, how pictures are shared out, and what is dropped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.runs.parts import PART_ID, drop_part, load_parts, plan_parts, read_pictures, write_pictures
from petseg.inference.many.inputs import Input
from shards.files import NotRegular


def pictures(count: int) -> list[Input]:
    return [Input(str(number), f"{number}.png") for number in range(count)]


def test_pictures_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "pictures.jsonl"
    items = [Input("a", "a.png"), Input("b\nc", "ö.png")]
    write_pictures(items, path)
    assert read_pictures(path) == items
    write_pictures([], path)
    assert read_pictures(path) == []
    with pytest.raises(FileNotFoundError):
        read_pictures(tmp_path / "none")
    path.write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        read_pictures(path)
    path.unlink()
    path.symlink_to(tmp_path)
    with pytest.raises(NotRegular):
        read_pictures(path)


def test_each_plan_has_ids_of_its_own_in_order(tmp_path: Path) -> None:
    first, second = plan_parts(tmp_path, pictures(5), 2), plan_parts(tmp_path, pictures(5), 2)
    ids = [part.id for part, _ in first]
    assert [identifier[8:] for identifier in ids] == ["-0001", "-0002"]
    assert all(PART_ID.fullmatch(identifier) for identifier in ids)
    assert not set(ids) & {part.id for part, _ in second}
    assert [part.folder for part, _ in first] == [tmp_path / "jobs" / "parts" / identifier for identifier in ids]
    assert [part.label for part, _ in first] == ["2 pictures", "3 pictures"]


def test_what_was_planned_and_not_dropped_is_loaded_in_order(tmp_path: Path) -> None:
    out = tmp_path / "my öut.1"
    empty = load_parts(out)
    assert (empty.trials, empty.folder, empty.name) == ((), out / "jobs", "predict-my__ut.1")
    assert not out.exists()
    planned = plan_parts(out, pictures(3), 3)
    for part, items in reversed(planned):
        write_pictures(items, part.folder / "pictures.jsonl")
    (out / "jobs" / "parts" / "0123abcd-0001.tmp").mkdir()
    (out / "jobs" / "parts" / "x").mkdir()
    assert [part.folder for part in load_parts(out).trials] == [part.folder for part, _ in planned]
    drop_part(planned[1][0])
    drop_part(planned[1][0])  # nothing is left to drop
    assert [part.id for part in load_parts(out).trials] == [planned[0][0].id, planned[2][0].id]
    assert re.fullmatch(r"[\w.-]+", load_parts(out).name)


@pytest.mark.parametrize("linked", ["jobs", "jobs/parts"])
def test_parts_behind_a_link_are_nobody_s(tmp_path: Path, linked: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "out" / linked
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotRegular):
        load_parts(tmp_path / "out")
