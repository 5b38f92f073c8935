"""Splits by share: no group is divided, and the same samples always fall alike."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.sources.splits import groups_of, read_lists, refuse_divided, share_splits, split_of_word

groups = st.lists(st.integers(0, 30).map(str), min_size=1, max_size=200).filter(lambda g: len(set(g)) > 2)


@given(groups, st.floats(0.01, 0.5), st.floats(0, 0.4), st.integers(0, 9), st.randoms())
def test_shares(found: list[str], val: float, test: float, seed: int, random) -> None:
    shares = {"val": val, "test": test}
    splits = share_splits(found, shares, seed)
    assert splits.keys() == set(found)  # one split for each group
    wanted = {"train", *(split for split, share in shares.items() if share)}
    assert set(splits.values()) == wanted  # none is empty
    assert share_splits(random.sample(found, len(found)), shares, seed) == splits


def test_shares_are_met_where_groups_are_small() -> None:
    splits = share_splits(map(str, range(1000)), {"val": 0.1, "test": 0.2}, 0)
    assert [list(splits.values()).count(split) for split in ("train", "val", "test")] == [700, 100, 200]
    assert share_splits(map(str, range(1000)), {"val": 0.1, "test": 0.2}, 1) != splits


def test_the_same_groups_are_taken_for_ever() -> None:
    """Whoever packs again compares with results on the former splits. A group counts as many samples as it has."""
    sizes = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 7, "h": 8}
    groups = [group for group, size in sizes.items() for _ in range(size)]
    shares = {"val": 0.3, "test": 0.2}  # of 36 samples
    taken = {"d": "val", "f": "val", "a": "val", "h": "test"}
    assert share_splits(groups, shares, 0) == dict.fromkeys("abcdefgh", "train") | taken
    assert share_splits(groups, shares, 1) == dict.fromkeys("abcdefgh", "train") | {"c": "val", "f": "val", "d": "test"}


@pytest.mark.parametrize(("share", "taken"), [(0.37, 1), (0.375, 2), (0.62, 2), (0.625, 3), (0.9, 3)])
def test_a_group_is_taken_if_half_of_it_fits(share: float, taken: int) -> None:
    """Four groups of two samples, of which the last stays in train."""
    splits = share_splits("aabbccdd", {"val": share}, 0)
    assert list(splits.values()).count("val") == taken


def test_a_group_that_is_half_of_all_samples_is_as_large_as_it_is() -> None:
    """Two of 17 samples are taken when it comes, and half of its ten are too many for the seven that are wanted."""
    splits = share_splits("aaaaaaaaaabcdefgh", {"val": 0.4}, 0)
    assert splits == dict.fromkeys("abcdefgh", "train") | {"d": "val", "f": "val"}


@pytest.mark.parametrize("shares", [{"val": 0.9, "test": 0.05}, {"val": 0.01, "test": 0.9}])
def test_the_last_groups_are_left_to_the_splits_that_have_none(shares: dict[str, float]) -> None:
    assert sorted(share_splits("abc", shares, 0).values()) == ["test", "train", "val"]


def test_too_few_groups() -> None:
    with pytest.raises(ValueError, match=r"^1 groups are too few for train, val: see --group-by$"):
        share_splits(["a", "a", "a"], {"val": 0.5, "test": 0.0}, 0)
    with pytest.raises(ValueError, match=r"^2 groups are too few for train, val, test: see --group-by$"):
        share_splits(["a", "b"], {"val": 0.5, "test": 0.1}, 0)


def test_groups_by_expression() -> None:
    assert groups_of(["v1_f1", "v1_f2", "v2_f1"], r"^(v\d)_") == {"v1_f1": "v1", "v1_f2": "v1", "v2_f1": "v2"}
    assert groups_of(["p07-s1"], r"p\d+") == {"p07-s1": "p07"}
    assert groups_of(["a"], "") == {"a": "a"}
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        groups_of(["a"], "(")
    with pytest.raises(ValueError, match=r"^--group-by '\(x\)\?a' finds no group in 'a'$"):
        groups_of(["a"], "(x)?a")
    with pytest.raises(ValueError, match="finds no group in 'b'"):
        groups_of(["a", "b"], "a")


def test_a_divided_group_is_named() -> None:
    refuse_divided({"a": "v", "b": "v"}, {"a": "val", "b": "val"})
    with pytest.raises(ValueError, match=r"group 'v' is divided: some of it is in train, and 'b' in val"):
        refuse_divided({"a": "v", "b": "v"}, {"a": "train", "b": "val"})


def test_lists(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("# of ours\na\n\nb c\n")
    (tmp_path / "validation.txt").write_text("d\n")
    assert read_lists([tmp_path / "train.txt", tmp_path / "validation.txt"]) == {
        "a": "train",
        "b c": "train",
        "d": "val",
    }
    (tmp_path / "test.txt").write_text("e\na\n")
    with pytest.raises(ValueError, match=r"test\.txt:2: 'a' is in the list of train, too"):
        read_lists([tmp_path / "train.txt", tmp_path / "test.txt"])
    with pytest.raises(ValueError, match="named after its split"):
        read_lists([tmp_path / "all.txt"])
    with pytest.raises(ValueError, match=r"val\.txt is missing"):
        read_lists([tmp_path / "val.txt"])


def test_words() -> None:
    assert [split_of_word(word) for word in ("Training", "Tr", "val", "Ts", "extra")] == [
        "train", "train", "val", "test", None,
    ]  # fmt: skip
