"""The cells of a sweep: every combination of its axes, or what a search draws from its space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.design.space import quantile
from jobs.design.spec import Spec
from petseg.config import RunConfig
from petseg.config.values import with_values

STARTUP = 10  # draws before a model of the results chooses, as optuna's TPE has it
MISSES_PER_CELL = 100  # so often in a row nothing new, per cell drawn before, and the space is taken as used up


@dataclass(frozen=True)
class Cell:
    """One point of the grid or of a search: its place on each axis, and the whole config."""

    axes: dict[str, Any]
    config: RunConfig
    drawn: dict[str, Any] = field(default_factory=dict, compare=False)  # the axes as the file spells their values


def expand(spec: Spec, base: RunConfig | None = None) -> list[Cell]:
    """The cells that follow from the file alone, at most run_cap of them.

    grid: every combination of the axes' values, the last axis varying fastest. random: all draws. bayes: the first
    STARTUP draws, on which its proposals build. Raises ValueError for an unknown field or a value of the wrong type.
    """
    base = base or RunConfig()
    if spec.method != "grid":
        count = spec.run_cap if spec.method == "random" else min(spec.run_cap, STARTUP)
        return list(itertools.islice(draws(spec, base), count))
    combinations = itertools.islice(itertools.product(*spec.axes.values()), spec.run_cap or None)
    return [cell_of(spec, base, dict(zip(spec.axes, values, strict=True))) for values in combinations]


def draws(spec: Spec, base: RunConfig) -> Iterator[Cell]:
    """The cells that chance gives a search, each once, in an order that depends on the space and the seed alone.

    More of them leave the first as they are: run_cap can be raised at any time. Ends when a finite space is used up.
    Raises ValueError for draws that no run can have.
    """
    check_comparable(spec)
    size = math.prod(distribution.size for distribution in spec.space.values())
    seen: set[RunConfig] = set()
    last = 0  # number of the last new one
    for number in itertools.count():
        if len(seen) >= size or number - last > MISSES_PER_CELL * (len(seen) + 1):
            return
        values = {name: distribution.at(quantile(spec.seed, name, number)) for name, distribution in spec.space.items()}
        try:
            cell = cell_of(spec, base, values)
        except ValueError as error:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ValueError(f"the search can draw {listed}, which cannot run: {error}") from None
        if cell.config not in seen:
            seen.add(cell.config)
            last = number
            yield cell


def cell_of(spec: Spec, base: RunConfig, values: Mapping[str, Any]) -> Cell:
    """The cell of these values of the fields that vary; with the fixed ones, which may mean nothing without them."""
    config = with_values(base, {**spec.fixed, **values})
    return Cell({name: field_value(config, name) for name in spec.names}, config, dict(values))


def check_comparable(spec: Spec) -> None:
    """Raises ValueError for a search that would choose between trials whose Dice is not the same measure."""
    for name in ("data.image_size_px", "data.fit", "data.border", "data.target", "data.shards"):
        if name in spec.space and (spec.early_stopping or spec.method == "bayes"):
            raise ValueError(
                f"parameter {name} decides what a Dice means: a search cannot choose it, fix it by `value`"
            )


def field_value(config: Any, name: str) -> Any:
    """The value of a dotted field."""
    for part in name.split("."):
        config = getattr(config, part)
    return config
