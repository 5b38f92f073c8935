"""The groups that a sample belongs to, without torch, so that the report of a sweep is quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GROUPINGS = ("species", "breeds", "groups")  # the coarsest first


def kind_of(key: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Breed and species of a sample, from its JSON; or from its key, which Oxford-IIIT Pet capitalises for cats."""
    breed = str(facts.get("breed") or key.rpartition("_")[0] or key)
    return breed, str(facts.get("species") or ("cat" if breed[:1].isupper() else "dog"))


def groups_of_samples(
    keys: Sequence[str], facts: Sequence[Mapping[str, Any]], has_trimaps: bool
) -> dict[str, list[str]]:
    """The group of each sample, by what is grouped, the coarsest first: species and breeds in a set of trimaps.

    In other sets `groups`, where samples share one, such as the frames of a video; {} where they do not.
    """
    if has_trimaps:
        kinds = [kind_of(key, one) for key, one in zip(keys, facts, strict=True)]
        return {"species": [species for _, species in kinds], "breeds": [breed for breed, _ in kinds]}
    names = [str(one.get("group") or key) for key, one in zip(keys, facts, strict=True)]
    return {"groups": names} if len(set(names)) < len(names) else {}
