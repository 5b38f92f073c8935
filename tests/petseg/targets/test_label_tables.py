"""What each label stands for, label by label, and how kinds of samples are told by their keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from petseg.targets.class_weights import class_weights, train_pixels
from petseg.targets.groups import groups_of_samples, kinds_of_samples
from petseg.targets.pets import kind_and_species, kind_of, kinds_of_keys, rule_name, rules_of
from petseg.targets.target import Target
from shards.classes import IGNORE_VALUE, ClassEntry

LABELS = {"pet": 4, "background": 9, "border": 0}


@pytest.mark.parametrize(
    ("rule", "border", "own"),
    [("border_fg", [1, 2, 3], [1, 2, 3]), ("border_bg", [0, 0, 0], [1, 2, 3]), ("border_ignore", [255] * 3, [1, 2, 3])],
)
def test_each_row_of_a_table_is_a_kind_and_an_unknown_label_is_background(
    rule: str, border: list[int], own: list[int]
) -> None:
    names, rules = rules_of("breed", LABELS, ("a", "b", "c"))
    assert names == ("background", "a", "b", "c")
    table = rules[rule]
    assert (table.shape, table.dtype) == ((3, 256), np.uint8)
    assert [table[:, label].tolist() for label in (4, 0, 9, 77, 255)] == [own, border, [0] * 3, [0] * 3, [255] * 3]


def test_of_three_classes_an_unknown_label_does_not_count() -> None:
    names, rules = rules_of("trimap", LABELS, ())
    assert (names, list(rules)) == (("background", "pet", "border"), [""])
    assert [rules[""][0, label] for label in (9, 4, 0, 77, 255)] == [0, 1, 2, IGNORE_VALUE, IGNORE_VALUE]
    assert rules_of("pet", LABELS, ())[0] == ("background", "pet")
    assert rule_name("fg") == "border_fg"


@pytest.mark.parametrize(
    ("key", "facts", "kind", "species"),
    [
        ("Maine_Coon_12", {}, "Maine_Coon", "cat"),
        ("great_pyrenees_3", {}, "great_pyrenees", "dog"),
        ("loner", {}, "loner", "dog"),
        ("_1", {}, "_1", "dog"),
        ("x_1", {"breed": "Bengal"}, "Bengal", "cat"),
        ("Bengal_1", {"species": "tiger"}, "Bengal", "tiger"),
        ("Bengal_1", {"breed": "", "species": ""}, "Bengal", "cat"),
        ("Bengal_1", {"breed": 7}, "7", "dog"),
    ],
)
def test_kind_and_species_by_facts_or_else_by_key(key: str, facts: dict[str, Any], kind: str, species: str) -> None:
    assert kind_and_species(key, facts) == (kind, species)
    if not facts:
        assert (kind_of(key, "breed"), kind_of(key, "species")) == (kind, species)


def test_kinds_are_in_alphabetical_order_and_at_least_two() -> None:
    keys = ["pug_1", "Bengal_1", "pug_2", "beagle_1"]
    assert kinds_of_keys("breed", keys, "data/set") == ("Bengal", "beagle", "pug")
    assert kinds_of_keys("species", keys, "data/set") == ("cat", "dog")
    with pytest.raises(ValueError, match="species") as error:
        kinds_of_keys("species", keys[:1], "data/set")
    assert str(error.value) == (
        "data.target = 'species' needs the keys of Oxford-IIIT Pet, such as Abyssinian_1: data/set has others; "
        "choose pet or trimap"
    )


def test_facts_group_samples_before_keys_do() -> None:
    keys, facts = ["x_1", "x_2"], [{"breed": "Bengal", "species": "cat"}, {"breed": "pug", "species": "dog"}]
    assert kinds_of_samples(keys, facts) == [("Bengal", "cat"), ("pug", "dog")]
    found = groups_of_samples(keys, facts, has_table=False)
    assert found == {"species": ["cat", "dog"], "breeds": ["Bengal", "pug"]}
    assert groups_of_samples(keys, [{"group": 3}, {"group": 3}], has_table=True) == {"groups": ["3", "3"]}


def test_frequencies_are_those_of_the_train_split_after_merging() -> None:
    """Labels 0 and 2 are one class, 1 is left out, and 3 is the other class."""
    table = np.full((1, 256), IGNORE_VALUE, np.uint8)
    table[0, [0, 2]], table[0, 3] = 1, 0
    classes = (ClassEntry("far", 0, (0, 0, 0)), ClassEntry("near", 1, (0, 0, 0)))
    target = Target("merged", classes, {"": table}, "", labels={})
    pixels = {"train": [10, 500, 30, 160, 7000], "val": [1, 1, 1, 1, 1]}
    manifest: Any = type("Manifest", (), {"packer": {"labels": {"pixels": pixels}}, "classes": [0] * 4})
    assert train_pixels(target, manifest).tolist() == [160, 40]
    assert class_weights("frequency", target, manifest).tolist() == pytest.approx([100 / 160, 100 / 40])
    with pytest.raises(ValueError, match="class_weights") as error:
        class_weights("1,2,3", target, manifest)
    assert str(error.value) == (
        "train.class_weights = '1,2,3': choose none, frequency, or 2 numbers of 0 or more, separated by commas: of "
        "far, near"
    )
