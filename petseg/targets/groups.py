"""The groups that a sample belongs to, without torch, so that the report of a sweep is quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from petseg.targets.pets import KIND_FACT, KIND_GROUPINGS, kind_and_species

GROUPINGS = (*KIND_GROUPINGS, "groups")  # the coarsest first


def kinds_of_samples(keys: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(kind, species) of each sample of a set without a class table; [] where neither JSON nor keys tell them."""
    if facts and all(one.get(KIND_FACT) for one in facts):
        return [kind_and_species(key, one) for key, one in zip(keys, facts, strict=True)]
    kinds = [kind_and_species(key, {}) for key in keys]
    names = {kind for kind, _ in kinds}
    return kinds if 1 < len(names) <= len(keys) / 2 else []  # numbers and file names are no kinds


def groups_of_samples(keys: Sequence[str], facts: Sequence[Mapping[str, Any]], has_table: bool) -> dict[str, list[str]]:
    """The group of each sample, by what is grouped, the coarsest first: the kinds in a set without a class table.

    In other sets `groups`, where samples share one, such as the frames of a video; {} where they do not.
    """
    if not has_table:
        kinds = [kind_and_species(key, one) for key, one in zip(keys, facts, strict=True)]
        return dict(zip(KIND_GROUPINGS, ([species for _, species in kinds], [kind for kind, _ in kinds]), strict=True))
    names = [str(one.get("group") or key) for key, one in zip(keys, facts, strict=True)]
    return {"groups": names} if len(set(names)) < len(names) else {}
