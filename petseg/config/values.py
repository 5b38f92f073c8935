"""A config's values: by dotted names, as nested dicts, and as the hash that identifies a run."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from petseg.config import WEIGHTS_SUFFIXES, RunConfig
from petseg.config.sizes import ImageSize, plain_size

Node = TypeVar("Node")


def identity(config: RunConfig, manifest_hash: str) -> dict[str, Any]:
    """All that determines a run's numbers: the config without names, paths and tracking, and the shard set's hash.

    A weights file is represented by its content; raises ValueError if there is no such file.
    """
    return {**_identity_fields(config), "manifest_hash": manifest_hash}


def _identity_fields(node: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for f in fields(node):
        value, takes_part = getattr(node, f.name), f.metadata.get("identity", True)
        if not takes_part or (f.metadata.get("later") and value == f.default):
            continue
        if f.metadata.get("later_group") and value.is_off:
            continue
        if is_dataclass(value):
            parts[f.name] = _identity_fields(value)
        else:
            parts[f.name] = takes_part(value) if callable(takes_part) else value
    return parts


def identity_names(node: Any = RunConfig, prefix: str = "") -> frozenset[str]:
    """Dotted names of the fields that determine a run's numbers."""
    names: set[str] = set()
    for f in fields(node):
        if f.metadata.get("identity", True):
            child = get_type_hints(node)[f.name]
            names |= identity_names(child, f"{prefix}{f.name}.") if is_dataclass(child) else {prefix + f.name}
    return frozenset(names)


def trial_id(config: RunConfig, manifest_hash: str) -> str:
    """First 10 hex digits of sha256 over the canonical JSON of the run's identity."""
    content = json.dumps(identity(config, manifest_hash), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:10]


def weights_files(config: RunConfig) -> dict[str, str]:
    """The files of weights that the config names, by field."""
    named = {
        "model.weights": config.model.weights,
        "model.init": config.model.init,
        "distill.teacher": config.distill.teacher,
    }
    return {name: path for name, path in named.items() if path.endswith(WEIGHTS_SUFFIXES)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    return asdict(config)


def config_from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The config of a config.json; fields that it lacks take their defaults. Raises ValueError as `with_values`."""
    return with_values(RunConfig(), flatten(tree))


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy of the config with dotted fields set, as in `with_values(config, {"model.arch": "unet"})`.

    Raises ValueError for a field that does not exist, a value of another type or outside its range.
    """
    return _rebuilt(config, "", {name: typed_value(name, value) for name, value in values.items()})


def typed_value(name: str, value: Any) -> Any:
    """A value converted to the type of its field. Raises ValueError for an unknown field or a value of another type."""
    known = field_types()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"there is no config field {name!r}; near it: {', '.join(near)}")
    return _typed(name, value, known[name])


@functools.cache
def field_types(node: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted name of each config field -> its type."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(node).items():
        nested = isinstance(hint, type) and is_dataclass(hint)
        types.update(field_types(hint, f"{prefix}{name}.") if nested else {prefix + name: hint})
    return types


def _rebuilt(node: Node, prefix: str, values: Mapping[str, Any]) -> Node:
    changed = {}
    for name, child in vars(node).items():
        dotted = prefix + name
        changed[name] = _rebuilt(child, f"{dotted}.", values) if is_dataclass(child) else values.get(dotted, child)
    return type(node)(**changed)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value in the field's type; corrects YAML's `1e-3` as a string, `no` as false, `null` as None."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        value = {False: "no", None: "none"}.get(value, value) if value in (False, None) else value
        if value not in choices:
            raise ValueError(f"{name} = {value!r}: choose one of {', '.join(choices)}")
        return value
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint in (int, ImageSize) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if hint == ImageSize and type(value) in (int, str):
        return plain_size(value)
    if type(value) is not hint:
        kind = "int, or HxW" if hint == ImageSize else hint.__name__
        raise ValueError(f"{name} = {value!r}: must be of type {kind}")
    return value
