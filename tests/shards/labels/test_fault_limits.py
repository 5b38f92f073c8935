"""Faults at the limits from which on they count, and how they are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shards.cause import Cause
from shards.classes import ClassEntry, ClassTable
from shards.labels import faults
from shards.labels.faults import (
    KINDS,
    Fault,
    LabelFaults,
    Tally,
    class_faults,
    duplicate_faults,
    mask_faults,
    set_faults,
    table_faults,
)
from shards.labels.observed import Observed
from shards.labels.rules import rules_of
from shards.manifest import Manifest, Source
from shards.near_duplicates.note import NearDuplicates, Pair


def table_of(*names: str) -> ClassTable:
    return ClassTable(tuple(ClassEntry(name, number, (number, 0, 0)) for number, name in enumerate(names)))


def test_a_fault_is_told_with_its_examples_and_how_many_more_there_are() -> None:
    kind = KINDS["swapped"]
    assert str(Fault("swapped", 1_003, ("a", "b"))) == (
        f"swapped (1,003): {kind.what}; {kind.advice}\n    a\n    b\n    and 1,001 more"
    )
    assert str(Fault("swapped", 2, ("a", "b"))) == f"swapped (2): {kind.what}; {kind.advice}\n    a\n    b"


def test_the_message_counts_kinds_of_fault() -> None:
    one, two = Fault("swapped", 1, ("a",)), Fault("overlap", 1, ("b",))
    assert str(LabelFaults([one])) == f"the labels have a fault:\n  {one}"
    assert str(LabelFaults([one, two], ["c is bad"])) == (
        f"the labels have 2 kinds of fault:\n  {one}\n  {two}\n  c is bad"
    )
    assert (LabelFaults([one, two]).faults, LabelFaults([one]).cause) == ((one, two), Cause.DATA)


def test_a_tally_keeps_the_first_examples_of_each_kind() -> None:
    tally, other = Tally(), Tally()
    for number in range(4):
        tally.add(Observed("m", "train", (), faults=(("swapped", f"a{number}"), ("overlap", f"o{number}"))))
        other.add(Observed("m", "train", (), faults=(("swapped", f"b{number}"),)))
    tally.merge(other)
    tally.merge(other)
    assert tally.examples == {"swapped": ["a0", "a1", "a2", "a3", "b0"], "overlap": ["o0", "o1", "o2", "o3"]}
    assert tally.counts == {"swapped": 12, "overlap": 4}
    assert other.examples == {"swapped": ["b0", "b1", "b2", "b3"]}
    assert [(fault.kind, fault.count, len(fault.examples)) for fault in mask_faults(tally)] == [
        ("swapped", 12, 5),
        ("overlap", 4, 4),
    ]


def test_a_tally_counts_a_limited_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAX_VALUES", 2)
    tally = Tally()
    tally.add(Observed("a", "train", (), {"1": 2, "2": 3, "3": 4}))
    tally.add(Observed("a", "train", (), {"3": 4, "2": 5}))
    assert tally.unknown == {"1": 2, "2": 8}


def test_counts_are_whole_numbers_by_split_in_a_fixed_order() -> None:
    tally = Tally()
    for split in ("val", "train"):
        tally.add(Observed("a", split, (0, 4, 5)))
        tally.add(Observed("a", split, (2, 1, 0)))
    content = tally.content()
    assert list(content["pixels"]) == list(content["pictures"]) == ["train", "val"]
    assert content["pixels"]["val"] == [2, 5, 5]
    assert content["pictures"]["val"] == [1, 2]
    assert {type(count) for counts in content["pixels"].values() for count in counts} == {int}


@pytest.mark.parametrize(
    ("classes", "seen", "unknown", "kind"),
    [
        ([[0], [1]], [5, 0, 0], {"255": 3}, "scaled_binary"),
        ([[0], [255]], [5, 0, 0], {"1": 3}, "scaled_binary"),
        ([[1]], [0, 0], {"255": 3}, "scaled_binary"),
        ([[0], [1], [2]], [5, 0, 0, 0], {"255": 3}, "unknown_value"),
        ([[0], [1]], [5, 0, 0], {"255": 3, "9": 1}, "unknown_value"),
        ([[0], [2]], [5, 0, 0], {"255": 3}, "unknown_value"),
        ([[0], [254]], [5, 0, 0], {"1": 3}, "unknown_value"),
        ([[0], [7], [255]], [5, 0, 0, 0], {"1": 3}, "unknown_value"),  # three values are not binary
        ([[], []], [5, 0, 0], {"255": 3}, "unknown_value"),
        ([[1], [2], [3]], [4, 4, 0, 0], {"0": 3}, "off_by_one"),
        ([[0], [1], [2]], [0, 4, 4, 0], {"3": 3}, "off_by_one"),
        ([[1], [2], [3]], [4, 4, 4, 0], {"0": 3}, "unknown_value"),  # 3 is seen, and would be 4
        ([[1], [2], [3]], [0, 0, 0, 0], {"0": 3, "7": 1}, "unknown_value"),
        ([[5]], [0, 0], {"4": 3}, "unknown_value"),  # a table of one value is near many
        ([[1, 2], [3]], [0, 0, 0], {"0": 1}, "off_by_one"),
    ],
)
def test_what_explains_the_values_of_no_class(
    classes: list[list[int]], seen: list[int], unknown: dict[str, int], kind: str
) -> None:
    rules = rules_of({"class": [{"name": f"c{number}", "values": one} for number, one in enumerate(classes)]})
    tally = Tally()
    tally.add(Observed("a", "val", tuple(seen)))
    tally.add(Observed("b", "train", (), unknown, (("unknown_value", "b"),)))
    assert [fault.kind for fault in mask_faults(tally, rules)] == [kind]
    assert [fault.kind for fault in mask_faults(tally)] == ["unknown_value"]


def test_values_to_ignore_need_not_be_explained() -> None:
    content: dict[str, Any] = {"class": [{"name": f"c{value}", "values": [value]} for value in (1, 2)]}
    tally = Tally()
    tally.add(Observed("b", "train", (), {"0": 3, "9": 1}, (("unknown_value", "b"),)))
    assert [fault.kind for fault in mask_faults(tally, rules_of({**content, "ignore": [9]}))] == ["off_by_one"]
    assert [fault.kind for fault in mask_faults(tally, rules_of(content))] == ["unknown_value"]


def test_colours_and_other_kinds_are_not_explained_by_values() -> None:
    rules = rules_of({"class": [{"name": "a", "colours": ["#000000"]}]})
    tally = Tally()
    tally.add(Observed("b", "train", (), {"#000001": 3}, (("unknown_value", "b"), ("lossy", "c"))))
    assert [fault.kind for fault in mask_faults(tally, rules)] == ["unknown_value", "lossy"]


@pytest.mark.parametrize(
    ("pictures", "pixels", "found"),
    [
        (5, 10, []),  # of 100,000: a ten-thousandth
        (5, 9, ["rare_class"]),
        (4, 50_000, ["rare_class"]),
        (0, 0, ["absent_class"]),
    ],
)
def test_from_when_on_a_class_is_rare(pictures: int, pixels: int, found: list[str]) -> None:
    tally = {"pictures": {"train": [9, pictures]}, "pixels": {"train": [99_000 - pixels, pixels, 1_000]}}
    assert [fault.kind for fault in class_faults(table_of("road", "car"), tally)] == found


def test_classes_are_told_by_kind_with_the_splits_that_have_them() -> None:
    names = [f"c{number}" for number in range(8)]
    counts = {"train": [0] * 7 + [1_234], "val": [0] * 5 + [3, 0, 0], "test": [0] * 5 + [3, 3, 0]}
    tally = {"pictures": counts, "pixels": {split: [*numbers, 0] for split, numbers in counts.items()}}
    absent, only = class_faults(table_of(*names), tally)
    assert absent == Fault("absent_class", 5, ("c0", "c1", "c2", "c3", "c4"))
    assert only == Fault("only_in_test", 2, ("c5, in val and test", "c6, in test"))
    (absent,) = class_faults(table_of(*names[:7]), {split: {"train": [0] * 8} for split in ("pictures", "pixels")})
    assert (absent.count, absent.examples) == (7, ("c0", "c1", "c2", "c3", "c4"))


def near(*pairs: Pair, total: int) -> NearDuplicates:
    return NearDuplicates("hash", "method", 24, {"train-val": total}, pairs, {})


def test_pairs_of_near_duplicates_are_named_with_their_splits() -> None:
    pairs = [Pair(f"a{number}", "train", f"b{number}", "val", 1) for number in range(7)]
    assert duplicate_faults(near(total=0)) == []
    (fault,) = duplicate_faults(near(*pairs, total=12))
    assert (fault.kind, fault.count, len(fault.examples)) == ("near_duplicate", 12, 5)
    assert fault.examples[0] == "train/a0 and val/b0"


def test_a_set_has_the_faults_of_its_classes_and_its_pairs() -> None:
    labels = {"pixels": {"train": [9, 0, 0]}, "pictures": {"train": [9, 0]}}
    pair = near(Pair("a", "train", "b", "val", 1), total=1)

    def kinds(labels: object, classes: ClassTable | None, duplicates: NearDuplicates | None) -> list[str]:
        manifest = Manifest(Source("", ""), {"labels": labels}, {}, (), 2, "", classes)
        return [fault.kind for fault in set_faults(manifest, duplicates)]

    table = table_of("road", "car")
    assert kinds(labels, table, pair) == ["absent_class", "near_duplicate"]
    assert kinds(labels, table, None) == ["absent_class"]
    assert kinds(None, table, pair) == ["near_duplicate"]
    assert kinds(labels, None, pair) == []


@pytest.mark.parametrize("count", [-1, True, 1.0, "1", None])
def test_a_count_is_a_whole_number(count: object) -> None:
    assert faults._are_counts({"pixels": {"train": [1, 0]}, "pictures": {"train": [0]}}, 1)
    assert faults._are_counts({"pixels": {}, "pictures": {}}, 1)
    assert not faults._are_counts({"pixels": {"train": [1, count]}, "pictures": {"train": [0]}}, 1)
    assert not faults._are_counts({"pixels": {"train": [1, 0]}, "pictures": {"train": [count]}}, 1)
    assert not faults._are_counts({"pixels": {"train": [1, 0, 0]}, "pictures": {"train": [0]}}, 1)


def test_tables_that_differ_are_told_class_by_class() -> None:
    (fault,) = table_faults(table_of("a", "b"), table_of("a", "c", "d"))
    assert fault == Fault("other_table", 2, ("1 is b here, and c in the set", "2 is nothing here, and d in the set"))
    (fault,) = table_faults(table_of(*"abcdefg"), table_of(*"hijklmn"))
    assert (fault.count, len(fault.examples)) == (7, 5)
    assert np.unique([example[:1] for example in fault.examples]).tolist() == list("01234")
