"""`early_terminate` of a sweep file, in wandb's words: which trials are stopped early (petseg.training.pruning)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from petseg.training.pruning import Hyperband

KEYS = ("type", *(field.name for field in fields(Hyperband)))


def parse_hyperband(entry: Any) -> Hyperband:
    """Raises ValueError that names what is not understood, and the choices."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"early_terminate = {entry!r}: write `early_terminate: {{type: hyperband, min_iter: 3}}`")
    if unknown := [key for key in entry if key not in KEYS]:
        raise ValueError(f"early_terminate: {unknown[0]!r} is not understood: use {', '.join(KEYS)}")
    if entry.get("type") != "hyperband":
        raise ValueError(f"early_terminate: type {entry.get('type')!r}: there is hyperband only")
    try:
        return Hyperband(**{key: value for key, value in entry.items() if key != "type"})
    except ValueError as error:
        raise ValueError(f"early_terminate: {error}") from None


def hyperband_entry(rule: Hyperband) -> dict[str, Any]:
    """The entry that `parse_hyperband` reads as this rule."""
    given = {name: value for name, value in asdict(rule).items() if value != getattr(Hyperband, name)}
    return {"type": "hyperband", **given}
