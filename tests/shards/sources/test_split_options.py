"""How samples come to their splits, and how a manifest tells it, for a pack that is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.sources.patterns import MAX_SHARE, SplitOptions, below, choose_splits, common_root

NAMES = [f"p{number}" for number in range(10)]


def lists_in(folder: Path, **names: str) -> tuple[Path, ...]:
    for split, text in names.items():
        (folder / f"{split}.txt").write_text(text.replace(" ", "\n"))
    return tuple(folder / f"{split}.txt" for split in names)


@pytest.mark.parametrize("flag", ["val_share", "test_share"])
def test_a_share_leaves_something_to_train_on(flag: str) -> None:
    SplitOptions(**{flag: MAX_SHARE})
    for share in (-0.1, MAX_SHARE + 0.01):
        with pytest.raises(
            ValueError, match=rf"^--{flag.replace('_', '-')} is {share}: from 0 to 0\.9 of the samples$"
        ):
            SplitOptions(**{flag: share})


def test_a_share_is_taken_out_of_train_alone() -> None:
    words = ["train"] * 7 + ["validation"] * 3
    splits, unlisted = choose_splits(NAMES, words, True, SplitOptions(test_share=0.3))
    assert unlisted == []
    assert [splits[name] for name in NAMES[7:]] == ["val"] * 3
    assert sorted(splits[name] for name in NAMES[:7]) == ["test"] * 2 + ["train"] * 5


def test_groups_of_the_samples_are_kept_together_and_the_seed_chooses_them() -> None:
    names = [f"{patient}-{number}" for patient in "abcdef" for number in range(2)]
    chosen = set()
    for seed in range(4):
        splits, _ = choose_splits(names, [""] * 12, False, SplitOptions((), 0.3, 0.2, "^.", seed))
        val, test = ([name for name in names if splits[name] == split] for split in ("val", "test"))
        assert (len(val), len(test)) == (4, 2)
        assert all(splits[f"{name[0]}-{number}"] == splits[name] for name in names for number in range(2))
        chosen.add((*val, *test))
    assert len(chosen) > 1


@pytest.mark.parametrize("flag", ["val", "test"])
def test_a_share_of_a_split_that_is_there_is_refused(flag: str) -> None:
    with pytest.raises(ValueError, match=rf"^--{flag}-share takes samples out of train for {flag}, which is there alr"):
        choose_splits(["a", "b"], ["train", flag], True, SplitOptions(**{f"{flag}_share": 0.5}))


def test_names_in_no_list_are_told_in_order_and_shares_come_from_the_list_of_train(tmp_path: Path) -> None:
    lists = lists_in(tmp_path, train="p1 p2 p3 p4 p5", test="p6")
    splits, unlisted = choose_splits(NAMES, [""] * 10, False, SplitOptions(lists, val_share=0.4))
    assert unlisted == ["p0", "p7", "p8", "p9"]
    assert sorted(splits) == NAMES[1:7]
    assert splits["p6"] == "test"
    assert sorted(splits.values()) == ["test", "train", "train", "train", "val", "val"]


@pytest.mark.parametrize(("number", "shown"), [(1, "x0"), (5, "x0, x1, x2, x3, x4"), (7, "x0, x1, x2, x3, x4")])
def test_names_without_a_picture_are_counted_and_the_first_told(tmp_path: Path, number: int, shown: str) -> None:
    lists = lists_in(tmp_path, train="a", val=" ".join(f"x{n}" for n in reversed(range(number))))
    with pytest.raises(ValueError, match=rf"^{number} names in the lists have no picture with a mask: {shown}$"):
        choose_splits(["a"], [""], False, SplitOptions(lists))


def test_a_set_of_train_alone_is_refused_however_it_comes_about(tmp_path: Path) -> None:
    all_train = r"^all pictures would be in train: tell the splits by \{split\} in --images, by --splits-from, or by a "
    for words, has_words, options in (
        (["", ""], False, SplitOptions()),
        (["train", "Tr"], True, SplitOptions()),
        (["", ""], False, SplitOptions(lists_in(tmp_path, train="a b"))),
    ):
        with pytest.raises(ValueError, match=all_train):
            choose_splits(["a", "b"], words, has_words, options)


def test_options_come_back_from_a_manifest(tmp_path: Path) -> None:
    options = SplitOptions((tmp_path / "lists" / "train.txt", tmp_path / "val.txt"), 0.1, 0.2, "^v", 7)
    content = options.content(tmp_path)
    assert content == {
        "splits_from": ["lists/train.txt", "val.txt"],
        "val_share": 0.1,
        "test_share": 0.2,
        "group_by": "^v",
    }
    assert SplitOptions.again(content, tmp_path, 7) == options


def test_what_lies_outside_of_the_data_set_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert common_root(Path("a/images"), tmp_path / "a" / "masks") == tmp_path / "a"
    assert common_root(tmp_path / "a", tmp_path / "a") == tmp_path / "a"
    assert common_root(Path("/images"), Path("/masks")) is None
    assert below(Path("a/b/c.txt"), tmp_path / "a") == "b/c.txt"
    assert below(tmp_path / "a", tmp_path / "a") == "."
    assert below(Path("/elsewhere/c.txt"), tmp_path) == below(Path("/elsewhere/c.txt"), None) == "c.txt"
