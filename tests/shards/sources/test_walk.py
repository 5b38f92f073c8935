"""Which files a pattern finds, and what it finds in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.sources.walk import Match, find_files, links_in, parse_pattern


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, below: str) -> list[Match]:
    return list(find_files(parse_pattern(f"{root}/{below}", "--images")))


def test_a_pattern_begins_where_its_first_placeholder_does() -> None:
    pattern = parse_pattern("a/b/{split}/*_{key}.jpg", "--images")
    assert (pattern.root, pattern.below, pattern.names) == (Path("a/b"), "{split}/*_{key}.jpg", {"split", "key"})
    cases = [("{key}.jpg", ".", "{key}.jpg"), ("/{key}", "/", "{key}"), ("../a/*/{key}", "../a", "*/{key}")]
    for text, root, below in cases:
        pattern = parse_pattern(text, "--images")
        assert (pattern.root, pattern.below) == (Path(root), below)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a/{key}/../b", "no .. may follow a placeholder"),
        ("a/*/../{key}", "no .. may follow a placeholder"),
        ("a/{keys}.jpg", "{keys} is none of {key}, {split}, {class}"),
        ("a/{}/{key}", "{} is none of {key}, {split}, {class}"),
        ("a/*.jpg", "it needs {key}, which picture and mask have in common"),
        ("a/b.jpg", "it needs {key}, which picture and mask have in common"),
    ],
)
def test_a_pattern_that_leads_nowhere_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        parse_pattern(text, "--masks")
    assert str(error.value) == f"--masks {text!r}: {said}"


def test_files_come_by_their_paths_with_what_the_placeholders_stand_for(tmp_path: Path) -> None:
    touch(tmp_path, "val/car/b.jpg", "train/road/x/a.jpg", "train/road/a.jpeg", "train/c.jpg", "a.jpg")
    assert found(tmp_path, "{split}/{class}/{key}.jpg") == [
        Match(tmp_path / "train/road/x/a.jpg", "x/a", "train", "road"),
        Match(tmp_path / "val/car/b.jpg", "b", "val", "car"),
    ]
    assert found(tmp_path, "{key}.jpeg") == [Match(tmp_path / "train/road/a.jpeg", "train/road/a", "", "")]
    assert [match.key for match in found(tmp_path, "*/{key}.jpg")] == ["c", "road/x/a", "car/b"]


def test_signs_of_regular_expressions_and_stars_are_what_they_are_in_a_path(tmp_path: Path) -> None:
    touch(tmp_path, "a+b/x.y_1.png", "a+b/xzy_1.png", "a+b/s/x.y_1.png", "aab/x.y_1.png")
    assert [match.path for match in found(tmp_path, "a+b/x.y_{key}.png")] == [tmp_path / "a+b/x.y_1.png"]
    assert [match.key for match in found(tmp_path, "*/x*_{key}.png")] == ["1", "1", "1"]
    assert [match.key for match in found(tmp_path, "{split}/{key}*png")] == ["s/x.y_1.", "x.y_1.", "xzy_1.", "x.y_1."]


def test_a_placeholder_that_stands_twice_stands_for_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "a/a.png", "a/b.png", "x/a/x/a.png")
    assert [match.key for match in found(tmp_path, "{key}/{key}.png")] == ["a", "x/a"]


def test_links_to_files_inside_are_found_and_folders_that_are_links_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "set/train/a.jpg", "other/b.jpg")
    (tmp_path / "set/train/link.jpg").symlink_to("a.jpg")
    (tmp_path / "set/folder").symlink_to(tmp_path / "set/train")
    (tmp_path / "set/other.jpg").symlink_to(tmp_path / "other")
    assert [match.key for match in found(tmp_path / "set", "{key}.jpg")] == ["train/a", "train/link"]
    (tmp_path / "set/train/out.png").symlink_to(tmp_path / "other/b.jpg")
    assert len(found(tmp_path / "set", "{key}.jpg")) == 2  # a link that no pattern names is nobody's concern
    out = tmp_path / "set/train/out.jpg"
    out.symlink_to(tmp_path / "other/b.jpg")
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        found(tmp_path / "set", "{key}.jpg")
    assert str(error.value) == (
        f"{out} is a link out of {tmp_path / 'set'}, to {tmp_path / 'other/b.jpg'}: put the file itself there"
    )


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "set/a.jpg")
    (tmp_path / "link").symlink_to("set")
    (tmp_path / "set/b.jpg").symlink_to("a.jpg")
    assert [match.path for match in found(tmp_path / "link", "{key}.jpg")] == [
        tmp_path / "link/a.jpg", tmp_path / "link/b.jpg",
    ]  # fmt: skip


def test_a_folder_that_is_missing_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        list(find_files(parse_pattern("no/{key}.jpg", "--images")))
    assert str(error.value) == f"{tmp_path / 'no'} is not a folder: {{key}}.jpg is looked for in it"


def test_names_in_a_folder_and_which_are_links(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "folder/b.jpg")
    for name, target in (("link", "a.jpg"), ("nowhere", "gone"), ("to_folder", "folder")):
        (tmp_path / name).symlink_to(target)
    assert links_in(tmp_path) == {"a.jpg": False, "link": True, "nowhere": True, "to_folder": True}
    assert links_in(tmp_path / "gone") == links_in(tmp_path / "a.jpg") == {}
