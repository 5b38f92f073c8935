"""A sweep file in wandb's own YAML form -> axes, or what a search draws from -> RunConfigs.

    method: grid
    metric: {name: val/dice, goal: maximize}
    parameters:
      model.arch: {values: [unet, resnet34_unet]}
      train:
        parameters:
          epochs: {value: 100}

Names are fields of RunConfig, dotted or nested. `value` fixes a field, `values` makes an axis. An axis is a field that
changes the trial's identity, or data.shards, whose set does; names, paths, threads and tracking can only be fixed.

Methods: grid (every combination), random (run_cap draws, jobs.search.rounds) and bayes (run_cap trials, each round
proposed in the light of the finished ones, jobs.search.rounds). The last two take distributions (jobs.design.space)
too, and early_terminate (jobs.design.early_terminate). A grid does not: it compares cells, and if some seeds of a cell
were stopped because they did badly, the mean of the others says too much.
`run_cap: 20` is how many trials there are, `seed: 0` (petseg's own) what a search's draws depend on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.design.early_terminate import parse_hyperband
from jobs.design.space import FORMS, Distribution, categorical, parse_distribution
from petseg.config.values import field_types, identity_names, typed_value
from petseg.training.pruning import Hyperband
from shards.files import NotRegular, read_text_file

TOP_LEVEL = (
    "name", "description", "method", "metric", "parameters", "project", "entity", "program", "run_cap", "seed",
    "early_terminate",
)  # fmt: skip
NAME = re.compile(r"\w[\w.+ -]{0,99}")
DEFAULT_SWEEP = Path(__file__).parents[1] / "sweeps" / "lab.yaml"
METHODS = ("grid", "random", "bayes")
METRIC = {"name": "val/dice", "goal": "maximize"}  # what picks the best weights and ranks the cells


def require_name(name: str, given_by: str) -> str:
    """The name of a sweep, which is that of its folder, its jobs and its group in wandb; raises ValueError for others.

    given_by: the flag or the field that says it
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{given_by} {name!r} cannot name a sweep, and so a folder: use letters, digits, `_`, `.`, `+`, `-` and "
            "spaces, and begin with a letter or a digit"
        )
    return name


@dataclass(frozen=True)
class Spec:
    """What a sweep varies and what it fixes, by dotted names of RunConfig's fields."""

    name: str
    axes: dict[str, list[Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    method: str = "grid"
    space: dict[str, Distribution] = field(default_factory=dict)  # of a search, in place of axes
    run_cap: int = 0  # 0 = every cell of the grid
    seed: int = 0
    early_stopping: Hyperband | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that vary."""
        return (*self.axes, *self.space)

    def changed(self, axes: Mapping[str, list[Any]], fixed: Mapping[str, Any]) -> Spec:
        """With further axes and fixed values, which replace what the file says of the same fields.

        A search draws from the values of such an axis.
        """
        kept = {name: values for name, values in self.axes.items() if name not in fixed}
        space = {name: distribution for name, distribution in self.space.items() if name not in fixed}
        if self.method == "grid":
            kept |= axes
        else:
            space |= {name: categorical(name, values) for name, values in axes.items()}
        still = {name: value for name, value in self.fixed.items() if name not in axes} | dict(fixed)
        changed = replace(self, axes=kept, space=space, fixed=still)
        check_axes(changed)
        return changed


def load_spec(path: Path) -> Spec:
    """Read a sweep file; raises ValueError that names the file and the fault."""
    from jobs.design.plain_yaml import parse_yaml  # yaml: not in commands that only look at a sweep

    try:
        text = read_text_file(path, "the sweep file")
    except FileNotFoundError:
        raise ValueError(f"no sweep file {path.absolute()}: {_ready_sweeps()}") from None
    except (IsADirectoryError, NotRegular) as error:
        what = f"{path.absolute()} is a folder, not a sweep file" if path.is_dir() else str(error)
        raise ValueError(f"{what}: {_ready_sweeps()}") from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    try:
        return parse_spec(content, default_name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _ready_sweeps() -> str:
    names = ", ".join(path.name for path in sorted(DEFAULT_SWEEP.parent.glob("*.yaml")))
    return f"{DEFAULT_SWEEP.parent} has {names}"


def parse_spec(content: Any, default_name: str) -> Spec:
    """The Spec of a parsed sweep file; raises ValueError for anything unknown, so that nothing is ignored."""
    if isinstance(content, Mapping) and (unknown := sorted(map(str, set(content) - set(TOP_LEVEL)))):
        raise ValueError(f"{unknown[0]!r} is not understood: use {', '.join(TOP_LEVEL)}")
    parameters = content.get("parameters") if isinstance(content, Mapping) else None
    if not isinstance(parameters, Mapping) or not parameters:
        raise ValueError("a sweep file needs `parameters:` with at least one field")
    method = content.get("method", "grid")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not built in: choose one of {', '.join(METHODS)}")
    distributions: dict[str, Distribution] = {}
    fixed: dict[str, Any] = {}
    for wandb_field in ("project", "entity"):
        if wandb_field in content:
            fixed[f"tracking.{wandb_field}"] = content[wandb_field]
    _read_parameters(parameters, "", distributions, fixed)
    metric = content.get("metric", METRIC)
    if metric != METRIC:
        raise ValueError(f"metric {metric}: trials are ranked by {METRIC}, and by nothing else")
    spec = Spec(
        name=require_name(str(content.get("name", default_name)), "name"),
        axes=_grid_axes(distributions) if method == "grid" else {},
        fixed=fixed,
        method=method,
        space={} if method == "grid" else distributions,
        run_cap=_whole(content, "run_cap", 1),
        seed=_whole(content, "seed", 0),
        early_stopping=parse_hyperband(content["early_terminate"]) if "early_terminate" in content else None,
    )
    check_method(spec)
    check_axes(spec)
    return spec


def check_axes(spec: Spec) -> None:
    """Raises ValueError for an axis of which values would be one trial: it changes no identity, or has one twice."""
    for name in spec.names:
        if name in field_types() and name not in identity_names() and name != "data.shards":
            raise ValueError(
                f"{name} cannot be an axis: it does not change a trial's numbers and is no part of its identity, so "
                f"all its values would be the same trial. Fix it by `value:` in the file or by --set {name}=VALUE"
            )
        _require_different(name, spec.axes[name] if name in spec.axes else spec.space[name].values)


def _require_different(name: str, values: Sequence[Any]) -> None:
    """Raises ValueError for two values that are one to the config, such as 1e-3 and 0.001."""
    seen: dict[Any, Any] = {}
    for value in values if name in field_types() else ():  # unknown fields are refused when the config is built
        same = typed_value(name, value)
        if same in seen:
            also = "" if str(value) == str(seen[same]) else f", as {seen[same]} and as {value}"
            raise ValueError(f"{name} has the value {same} twice{also}, and both would be one trial: leave one out")
        seen[same] = value


def check_method(spec: Spec) -> None:
    """Raises ValueError for settings that the method does not allow."""
    if spec.method == "grid" and spec.early_stopping:
        raise ValueError(
            "early_terminate does not go with method grid, which compares its cells: the seeds that did badly would be "
            "missing from their means. Leave it out, or use method random or bayes"
        )
    if spec.method != "grid" and not spec.run_cap:
        raise ValueError(f"method {spec.method} needs run_cap, the number of trials")


def _grid_axes(distributions: Mapping[str, Distribution]) -> dict[str, list[Any]]:
    for name, distribution in distributions.items():
        if distribution.kind != "categorical":
            raise ValueError(
                f"parameter {name}: a grid takes `value` or `values`; {distribution.kind} is for random and bayes"
            )
    return {name: list(distribution.values) for name, distribution in distributions.items()}


def _whole(content: Mapping[str, Any], name: str, lowest: int) -> int:
    """A whole number, 0 if it is not given."""
    value = content.get(name, 0)
    if name in content and (type(value) is not int or value < lowest):
        raise ValueError(f"{name} = {value!r}: must be a whole number of at least {lowest}")
    return value


def _read_parameters(tree: Any, prefix: str, distributions: dict[str, Distribution], fixed: dict[str, Any]) -> None:
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(f"parameter {prefix.rstrip('.')}: `parameters:` needs at least one field")
    for name, entry in tree.items():
        dotted = f"{prefix}{name}"
        keys = set(entry) if isinstance(entry, Mapping) else set()
        if keys == {"parameters"}:
            _read_parameters(entry["parameters"], f"{dotted}.", distributions, fixed)
        elif "value" in keys and (len(keys) == 1 or (entry.get("distribution") == "constant" and len(keys) == 2)):
            fixed[dotted] = entry["value"]
        elif keys & {"values", "min", "max", "distribution"}:
            distributions[dotted] = parse_distribution(dotted, entry)
        else:
            raise ValueError(f"parameter {dotted}: give {FORMS}")


def parse_settings(settings: Sequence[str], flag: str) -> dict[str, Any]:
    """`train.epochs=3` -> {"train.epochs": 3}, values read as YAML; raises ValueError that shows the form."""
    from jobs.design.plain_yaml import parse_yaml

    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise ValueError(f"{flag} {setting}: write {flag} NAME=VALUE, such as {flag} train.epochs=3")
        try:
            parsed[name] = parse_yaml(value)
        except ValueError as error:
            raise ValueError(f"{flag} {setting}: {value!r} is not a YAML value: {error}") from None
    return parsed


def parse_axes(settings: Sequence[str]) -> dict[str, list[Any]]:
    """`train.seed=0,1,2` -> {"train.seed": [0, 1, 2]}."""
    with_brackets = [f"{name}=[{values}]" for name, _, values in (s.partition("=") for s in settings) if values]
    if len(with_brackets) != len(settings):
        raise ValueError(f"--axis {' '.join(settings)}: write --axis NAME=VALUE,VALUE, such as --axis train.seed=0,1,2")
    return parse_settings(with_brackets, "--axis")
