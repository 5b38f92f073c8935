"""How a config says that a value cannot be."""

from __future__ import annotations


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raises ValueError that names the field, its value and the rule, unless `ok`."""
    if not ok:
        raise ValueError(f"{name} = {value!r}: {rule}")
