"""A sweep file in wandb's own YAML form -> axes -> RunConfigs.

    method: grid
    metric: {name: val/dice, goal: maximize}
    parameters:
      model.arch: {values: [unet, resnet34_unet]}
      train:
        parameters:
          epochs: {value: 100}

Names are fields of RunConfig, dotted or nested. `value` fixes a field, `values` makes an axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from petseg.config import RunConfig, with_values

TOP_LEVEL = ("name", "description", "method", "metric", "parameters", "project", "entity", "program")
METHODS = ("grid",)
METRIC = {"name": "val/dice", "goal": "maximize"}  # what picks the best weights and ranks the cells


@dataclass(frozen=True)
class Spec:
    """What a sweep varies and what it fixes, by dotted names of RunConfig's fields."""

    name: str
    axes: dict[str, list[Any]]
    fixed: dict[str, Any] = field(default_factory=dict)

    def changed(self, axes: Mapping[str, list[Any]], fixed: Mapping[str, Any]) -> Spec:
        """With further axes and fixed values, which replace what the file says of the same fields."""
        return Spec(
            self.name,
            {name: values for name, values in self.axes.items() if name not in fixed} | dict(axes),
            {name: value for name, value in self.fixed.items() if name not in axes} | dict(fixed),
        )


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its place on each axis, and the whole config."""

    axes: dict[str, Any]
    config: RunConfig


def load_spec(path: Path) -> Spec:
    """Read a sweep file; raises ValueError that names the file and the fault."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no sweep file {path}: the default is jobs/sweeps/lab.yaml") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return parse_spec(content, default_name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_spec(content: Any, default_name: str) -> Spec:
    """The Spec of a parsed sweep file; raises ValueError for what is not understood, so that nothing is ignored."""
    if not isinstance(content, Mapping) or not isinstance(content.get("parameters"), Mapping):
        raise ValueError("a sweep file needs `parameters:` with at least one field")
    if unknown := sorted(set(content) - set(TOP_LEVEL)):
        raise ValueError(f"{unknown[0]!r} is not understood: use {', '.join(TOP_LEVEL)}")
    method = content.get("method", "grid")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not built in: choose one of {', '.join(METHODS)}")
    axes: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    for wandb_field in ("project", "entity"):
        if wandb_field in content:
            fixed[f"tracking.{wandb_field}"] = content[wandb_field]
    _read_parameters(content["parameters"], "", axes, fixed)
    metric = content.get("metric", METRIC)
    if metric != METRIC:
        raise ValueError(f"metric {metric}: trials are ranked by {METRIC}, and by nothing else")
    return Spec(str(content.get("name", default_name)), axes, fixed)


def _read_parameters(tree: Mapping[str, Any], prefix: str, axes: dict[str, list[Any]], fixed: dict[str, Any]) -> None:
    for name, entry in tree.items():
        dotted = f"{prefix}{name}"
        keys = set(entry) if isinstance(entry, Mapping) else set()
        if keys == {"parameters"}:
            _read_parameters(entry["parameters"], f"{dotted}.", axes, fixed)
        elif keys == {"value"}:
            fixed[dotted] = entry["value"]
        elif keys == {"values"} and isinstance(entry["values"], list) and entry["values"]:
            axes[dotted] = entry["values"]
        else:
            raise ValueError(f"parameter {dotted}: give `value: X`, `values: [X, Y]` or nested `parameters:`")


def expand(spec: Spec, base: RunConfig | None = None) -> list[Cell]:
    """Every combination of the axes' values, the last axis varying fastest.

    Raises ValueError for an unknown field or a value of the wrong type.
    """
    names = list(spec.axes)
    fixed = with_values(base or RunConfig(), spec.fixed)
    cells = []
    for values in itertools.product(*spec.axes.values()):
        config = with_values(fixed, dict(zip(names, values, strict=True)))
        cells.append(Cell({name: field_value(config, name) for name in names}, config))
    return cells


def field_value(config: Any, name: str) -> Any:
    """The value of a dotted field."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def parse_settings(settings: Sequence[str], flag: str) -> dict[str, Any]:
    """`train.epochs=3` -> {"train.epochs": 3}, values read as YAML; raises ValueError that shows the form."""
    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise ValueError(f"{flag} {setting}: write {flag} NAME=VALUE, such as {flag} train.epochs=3")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{flag} {setting}: {value!r} is not a YAML value") from None
    return parsed


def parse_axes(settings: Sequence[str]) -> dict[str, list[Any]]:
    """`train.seed=0,1,2` -> {"train.seed": [0, 1, 2]}."""
    with_brackets = [f"{name}=[{values}]" for name, _, values in (s.partition("=") for s in settings) if values]
    if len(with_brackets) != len(settings):
        raise ValueError(f"--axis {' '.join(settings)}: write --axis NAME=VALUE,VALUE, such as --axis train.seed=0,1,2")
    return parse_settings(with_brackets, "--axis")
