"""The cells that a sweep file and flags ask for, with the manifests of the shard sets that they train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.design.expansion import Cell
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec, load_spec, parse_axes, parse_settings
from petseg.config import WEIGHTS_FIELDS, WEIGHTS_SUFFIXES
from petseg.recipes import read_recipe
from shards.command import typed


@dataclass(frozen=True)
class Cells:
    """A spec, its cells as far as they are known, and their shard sets."""

    spec: Spec
    cells: tuple[Cell, ...]
    sets: ShardSets


def read_spec(path: Path, axes: Sequence[str], settings: Sequence[str], recipe: str = "") -> Spec:
    """Read a sweep file, changed by --recipe, and then by --axis and --set.

    Raises ValueError that names the file or the flag, and for weights that are not there.
    """
    spec = load_spec(path)
    if recipe:
        spec = spec.changed({}, {name: value for name, value in read_recipe(recipe).items() if name not in spec.names})
    spec = spec.changed(parse_axes(axes), parse_settings(settings, "--set"))
    require_weights(spec)
    return spec


def require_weights(spec: Spec) -> None:
    """Raises ValueError for a file of weights that the sweep names and that is not there."""
    for name in WEIGHTS_FIELDS:
        drawn = spec.space[name].values if name in spec.space else ()
        for weights in (spec.fixed.get(name), *spec.axes.get(name, ()), *drawn):
            if str(weights).endswith(WEIGHTS_SUFFIXES) and not Path(weights).is_file():
                raise ValueError(
                    f"{name} = {weights!r}: there is no such file in {Path.cwd()}: write its whole path, or make it by "
                    f"`{_made_by(name, weights)}`"
                )


def _made_by(name: str, weights: str) -> str:
    if name == "model.weights":
        return typed("-m", "petseg.models.weights", "ENCODER", "--out", weights)
    return typed("-m", "petseg.best", "RUN", "--out", weights)
