"""The targets of a set of trimaps, such as Oxford-IIIT Pet: what pet, background and border count as, and what they are
called (numpy only).

This module alone knows of pets. The others ask it by names that would fit another set of three labels as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petseg.targets.words import Words
from shards.classes import IGNORE_VALUE

PET = "pet"
TRIMAP = "trimap"
NAMED_TARGETS = (PET, TRIMAP, "species", "breed")
IMPLIED = PET  # what a run learns that does not say it
THREE_CLASSES = TRIMAP  # the labels as they are
BY_KIND = {"species": 3, "breed": 38}  # targets with a class for each kind of sample -> classes of Oxford-IIIT Pet
SPLIT_SIZES = {"train": 3312, "val": 368}  # of Oxford-IIIT Pet
BORDERS = ("fg", "bg", "ignore")  # the border counts as pet, as background, or not at all
FLOOR_NAME = "all_pet_dice"  # the metric of the implied target: Dice of calling every pixel pet
KIND_FACT = "breed"  # in a sample's JSON
KIND_GROUPINGS = ("species", "breeds")  # in evaluate-SPLIT.json, the coarser first

KIND_WORDS = Words(
    kind="breed",
    disputed="border",
    rules={
        "fg": "border counts as the pet's class (fg)",
        "bg": "border counts as background (bg)",
        "ignore": "border left out of loss and metrics (ignore)",
    },
)
IMPLIED_WORDS = Words(
    mask="trimap",
    floor="All-pet guess",
    floor_within="the all-pet guess",
    every_pixel="calling every pixel pet",
    kind="breed",
    disputed="border",
    rules={**KIND_WORDS.rules, "fg": "border counts as pet (fg)"},
)

Table = NDArray[np.uint8]  # (R, 256): the class of each label, by kind of sample


def rules_of(name: str, trimap: Mapping[str, int], kinds: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Table]]:
    """The names of a target's classes, and its tables by rule.

    name: of NAMED_TARGETS; pet = background and pet, trimap = these and border, species and breed = background and a
        class for each of the `kinds`, which a sample's pet and, by the rule, its border belong to
    trimap: the labels of pet, background and border
    """
    if name == TRIMAP:
        table = np.full((1, 256), IGNORE_VALUE, np.uint8)
        three = ("background", PET, "border")
        table[0, [trimap[one] for one in three]] = range(len(three))
        return three, {"": table}
    names = ("background", *(kinds or (PET,)))
    return names, {rule_name(border): _table(trimap, border, len(names) - 1) for border in BORDERS}


def rule_name(border: str) -> str:
    """The name of the rule that data.border chooses."""
    return f"border_{border}"


def kind_and_species(key: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Breed and species of a sample, from its JSON; or from its key, which Oxford-IIIT Pet capitalises for cats."""
    breed = str(facts.get(KIND_FACT) or key.rpartition("_")[0] or key)
    return breed, str(facts.get("species") or ("cat" if breed[:1].isupper() else "dog"))


def kind_of(key: str, by: str) -> str:
    """The species or the breed that a sample's key names."""
    breed, species = kind_and_species(key, {})
    return breed if by == "breed" else species


def kinds_of_keys(name: str, keys: Sequence[str], location: str) -> tuple[str, ...]:
    """The kinds of a target of BY_KIND; raises ValueError where the keys name none. keys: none of a foreign set"""
    kinds = tuple(sorted({kind_of(key, name) for key in keys}))
    if len(kinds) < 2:
        raise ValueError(
            f"data.target = {name!r} needs the keys of Oxford-IIIT Pet, such as Abyssinian_1: {location} has others; "
            "choose pet or trimap"
        )
    return kinds


def _table(trimap: Mapping[str, int], border: str, rows: int) -> Table:
    """The tables of a border rule: in row r the pet is class r + 1, and an unknown label is background."""
    own = np.arange(1, rows + 1, dtype=np.uint8)
    table = np.zeros((rows, 256), np.uint8)
    table[:, IGNORE_VALUE] = IGNORE_VALUE  # of padding
    table[:, trimap["background"]] = 0
    table[:, trimap["pet"]] = own
    if border == "fg":
        table[:, trimap["border"]] = own
    else:
        table[:, trimap["border"]] = 0 if border == "bg" else IGNORE_VALUE
    return table
