"""The targets of a set of trimaps, such as Oxford-IIIT Pet: what pet, background and border count as (numpy only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from petseg.targets.groups import kind_of as breed_and_species
from shards.classes import IGNORE_VALUE

PET = "pet"
PETS_TARGETS = (PET, "trimap", "species", "breed")
BORDERS = ("fg", "bg", "ignore")  # the border counts as pet, as background, or not at all

Table = NDArray[np.uint8]  # (R, 256): the class of each label, by kind of sample


def pets_rules(name: str, trimap: Mapping[str, int], kinds: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Table]]:
    """The names of a target's classes, and its tables by rule.

    name: of PETS_TARGETS; pet = background and pet, trimap = these and border, species and breed = background and a
        class for each of the `kinds`, which a sample's pet and, by the rule, its border belong to
    trimap: the labels of pet, background and border
    """
    if name == "trimap":
        table = np.full((1, 256), IGNORE_VALUE, np.uint8)
        three = ("background", PET, "border")
        table[0, [trimap[one] for one in three]] = range(len(three))
        return three, {"": table}
    names = ("background", *(kinds or (PET,)))
    return names, {f"border_{border}": _table(trimap, border, len(names) - 1) for border in BORDERS}


def kind_of(key: str, by: str) -> str:
    """The species or the breed that a sample's key names."""
    breed, species = breed_and_species(key, {})
    return breed if by == "breed" else species


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
