"""What is refused before pictures and masks of classes are packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.command import OK, WRONG_USE, Failure, run_command
from shards.pack import main, pack
from tests.shards.test_pack_pairs import words


def test_flags_that_do_not_fit_together(many_scenes, tmp_path: Path, capsys) -> None:
    for flags, message in (
        (["--synthetic", 9, "--masks", "x"], "--masks needs --images PATTERN"),
        (["--synthetic", 9, "--val-share", 0.1], "--val-share needs --images PATTERN"),
        (["--images", many_scenes.images], "--images needs either --masks PATTERN or --coco JSON"),
        (["--images", "a", "--masks", "b"], "--masks needs --classes TOML; `--classes auto` writes one"),
        (["--images", "a", "--masks", "b", "--classes", "c", "--val-share", 2], "--val-share is 2.0: from 0 to 0.9"),
        (["--images", "a", "--source", tmp_path], "name exactly one of --source DIR"),
        (["--images", "a", "--masks", "b", "--classes", "auto", "--check"], "--classes auto packs nothing"),
    ):
        assert run_command(main, [str(flag) for flag in flags]) == WRONG_USE
        assert message in capsys.readouterr().err


def test_check_reads_the_lists_and_writes_nothing(many_scenes, tmp_path: Path) -> None:
    assert run_command(main, [*words(many_scenes, tmp_path / "set"), "--check"]) == OK
    many_scenes.table.write_text("")
    assert run_command(main, [*words(many_scenes, tmp_path / "set"), "--check"]) == WRONG_USE
    assert not (tmp_path / "set").exists()


def test_damaged_pictures_are_named_beside_good_labels(many_scenes, tmp_path: Path) -> None:
    picture, _ = many_scenes.add("broken")
    picture.write_bytes(b"")
    with pytest.raises(Failure, match=r"1 samples cannot be packed:\n.*broken\.jpg"):
        pack(many_scenes.config(tmp_path / "set"))
