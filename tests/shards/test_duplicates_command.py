"""The note of near-identical pictures as it is kept beside a set, and what the command tells of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shards import duplicates as module
from shards.command import OK, run_command
from shards.duplicates import DuplicatesConfig, look, main
from shards.manifest import load_manifest
from shards.near_duplicates.note import (
    NEAR_DUPLICATES_NAME,
    NearDuplicates,
    Pair,
    load_near_duplicates,
    save_near_duplicates,
    summarise_duplicates,
)

PAIRS = tuple(Pair(f"a{number}", "train", f"b{number}", "val", number) for number in range(3))
NOTE = NearDuplicates("m", "dhash", 24, {"train-val": 3, "train-test": 0}, PAIRS, {"train": {"a0": "00"}, "val": {}})

LISTED = [f"train/a{number}  val/b{number}  {number} bits differ" for number in range(3)]


def test_a_note_comes_back_for_its_set_alone(tmp_path: Path) -> None:
    assert load_near_duplicates(tmp_path, "m") is None
    save_near_duplicates(NOTE, tmp_path)
    assert load_near_duplicates(tmp_path, "m") == load_near_duplicates(str(tmp_path), "m") == NOTE
    assert load_near_duplicates(tmp_path, "n") is None
    assert json.loads((tmp_path / NEAR_DUPLICATES_NAME).read_text())["format_version"] == 1
    assert NOTE.total == 3
    assert NOTE.summary == "3 near-identical pairs lie across splits (3 train-val)"
    assert summarise_duplicates({}) == "no near-identical pictures lie across splits"
    assert summarise_duplicates({"a-b": 1200, "a-c": 1, "b-c": 0}) == (
        "1,201 near-identical pairs lie across splits (1,200 a-b, 1 a-c)"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["pairs"][1].update(key="a/b"), lambda c: c["pairs"][1].update(split="a b"),
        lambda c: c["pairs"][1].update(other=""), lambda c: c["pairs"][1].update(other_split="\x1b"),
        lambda c: c["counts"].update({"train val": 0}), lambda c: c["hashes"].update({"\n": {}}),
        lambda c: c["counts"].update({"train-val": "many"}), lambda c: c["pairs"][0].pop("distance"),
        lambda c: c.update(new=1), lambda c: c.pop("method"), lambda c: c.update(hashes={"train": 7}),
    ],
)  # fmt: skip
def test_a_note_that_could_not_be_shown_is_damaged(tmp_path: Path, change) -> None:
    save_near_duplicates(NOTE, tmp_path)
    path = tmp_path / NEAR_DUPLICATES_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    again = rf"delete it, then `python -m shards\.duplicates {tmp_path}` writes it anew$"
    with pytest.raises(ValueError, match=rf"^{path} is damaged \(.+\): {again}"):
        load_near_duplicates(tmp_path, "m")


@pytest.mark.parametrize(
    ("flags", "anew", "num_workers"), [([], False, 5), (["--workers", "3"], False, 3), (["--anew"], True, 5)]
)
def test_a_set_is_read_where_it_has_no_note_or_that_is_asked_for(
    shard_set: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], anew: bool, num_workers: int
) -> None:
    manifest = load_manifest(shard_set)
    read: list[tuple] = []
    monkeypatch.setattr(module, "default_workers", lambda: 5)
    monkeypatch.setattr(module, "hash_set", lambda *given: read.append(given) or {})
    config = module.parse(DuplicatesConfig, [str(shard_set), *flags], None, positional=True)
    noted = look(config)
    assert bool(read) == anew
    assert (noted.total, noted.hashes == {}) == (0, anew)
    (shard_set / NEAR_DUPLICATES_NAME).unlink(missing_ok=True)
    assert look(config).manifest_hash == manifest.hash
    assert read[-1] == (shard_set, manifest, num_workers)
    assert load_near_duplicates(shard_set, manifest.hash) == look(replace(config, anew=False))


@pytest.mark.parametrize(
    ("note", "flags", "lines"),
    [
        (NOTE, [], [*(f"train/a{n}  val/b{n}  {n} bits differ" for n in range(3)), NOTE.summary]),
        (
            NOTE,
            ["--show", "2"],
            [*(f"train/a{n}  val/b{n}  {n} bits differ" for n in range(2)), "and 1 more", NOTE.summary],
        ),
        (NOTE, ["--show", "3"], [*(f"train/a{n}  val/b{n}  {n} bits differ" for n in range(3)), NOTE.summary]),
        (NOTE, ["--show", "-1"], ["and 3 more", NOTE.summary]),
        (replace(NOTE, counts={"train-val": 0}, pairs=()), [], ["no near-identical pictures lie across splits"]),
    ],
)
def test_pairs_are_listed_to_a_limit_with_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    note: NearDuplicates,
    flags: list[str],
    lines: list[str],
) -> None:
    monkeypatch.setattr(module, "look", lambda config: note)
    assert run_command(main, ["set", *flags]) == OK
    advice = "`python -m shards.pack ... --drop-duplicates` keeps those of val and test out of train"
    assert capsys.readouterr().out.splitlines() == [*lines, *([advice] if note.total else [])]


def test_of_many_pairs_fifty_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    many = tuple(Pair(f"a{number}", "train", "b", "val", 1) for number in range(60))
    monkeypatch.setattr(module, "look", lambda config: replace(NOTE, counts={"train-val": 2060}, pairs=many))
    assert run_command(main, ["set"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[49], lines[50]) == (53, "train/a49  val/b  1 bits differ", "and 2,010 more")
