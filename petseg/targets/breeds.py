"""The breed and species of a sample, without torch, so that the report of a sweep is quick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kind_of(key: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Breed and species of a sample, from its JSON; or from its key, which Oxford-IIIT Pet capitalises for cats."""
    breed = str(facts.get("breed") or key.rpartition("_")[0] or key)
    return breed, str(facts.get("species") or ("cat" if breed[:1].isupper() else "dog"))
