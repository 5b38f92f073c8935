"""Which samples belong together: kinds by their facts or keys, and groups that were packed."""

from __future__ import annotations

import pytest

from petseg.targets.groups import groups_of_samples, kinds_of_samples

CATS_AND_DOGS = ["Bengal_1", "Bengal_2", "beagle_1", "beagle_2"]
KINDS = [("Bengal", "cat"), ("Bengal", "cat"), ("beagle", "dog"), ("beagle", "dog")]


def test_kinds_are_those_of_the_facts_or_else_of_the_keys() -> None:
    assert kinds_of_samples(CATS_AND_DOGS, [{}] * 4) == KINDS
    told = [{"breed": "Sphynx", "species": "cat"}] * 4
    assert {kind for kind, _ in kinds_of_samples(CATS_AND_DOGS, told)} == {"Sphynx"}
    half_told = [*told[:2], {}, {}]  # then the keys alone count
    assert kinds_of_samples(CATS_AND_DOGS, half_told) == KINDS


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        (["img_1", "img_2", "img_3", "img_4"], 0),  # one kind is none
        (["a_1", "a_2", "b_1", "b_2"], 2),  # two samples of each at the least
        (["a_1", "a_2", "b_1"], 0),
        (["1", "2", "3"], 0),
        ([], 0),
    ],
)
def test_numbers_and_file_names_are_no_kinds(keys: list[str], kinds: int) -> None:
    assert len(set(kinds_of_samples(keys, [{}] * len(keys)))) == kinds


def test_a_set_without_a_table_is_grouped_by_species_and_breed() -> None:
    found = groups_of_samples(CATS_AND_DOGS, [{}] * 4, has_table=False)
    assert list(found) == ["species", "breeds"]  # the coarser first
    assert found["breeds"] == ["Bengal", "Bengal", "beagle", "beagle"]
    assert found["species"] == ["cat", "cat", "dog", "dog"]


def test_other_sets_are_grouped_where_samples_share_a_group() -> None:
    keys = ["f1", "f2", "f3"]
    videos = [{"group": "v1"}, {"group": "v1"}, {"group": "v2"}]
    assert groups_of_samples(keys, videos, has_table=True) == {"groups": ["v1", "v1", "v2"]}
    alone = [{"group": "v1"}, {"group": "v1"}, {}]  # a sample without one is a group of its own
    assert groups_of_samples(keys, alone, has_table=True) == {"groups": ["v1", "v1", "f3"]}
    assert groups_of_samples(keys, [{}, {}, {}], has_table=True) == {}
    assert groups_of_samples(keys, [{"group": key} for key in keys], has_table=True) == {}
