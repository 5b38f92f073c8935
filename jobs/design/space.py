"""What a search draws from: one parameter of a sweep file in wandb's form -> a distribution of a config field.

    {values: [adam, sgd]}                                              categorical, each as likely as another
    {min: 1, max: 9}                                                   int_uniform, both ends included
    {min: 0.0, max: 0.5}                                               uniform
    {min: 1.0e-5, max: 1.0e-1, distribution: log_uniform_values}       uniform in its logarithm
    {min: 8, max: 64, q: 8, distribution: q_uniform}                   the multiples of q from min to max

Names and defaults are wandb's (docs.wandb.ai, sweep configuration options). Two things differ. q_uniform gives each
multiple within the bounds the same chance, where wandb rounds a uniform number, which can leave the bounds and makes
the outer values half as likely. And numbers that are not whole have SIGNIFICANT digits, so that people can type them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIGNIFICANT = 6
KEYS = {
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform_values": ("min", "max"),
}
FORMS = "`value: X`, `values: [X, Y]`, `min: A` with `max: B`, or nested `parameters:`"


@dataclass(frozen=True)
class Distribution:
    """What one config field is drawn from."""

    kind: str  # one of KEYS
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    q: float = 1.0

    @property
    def size(self) -> float:
        """How many different values there are; inf for a continuum."""
        if self.kind == "categorical":
            return len(self.values)
        if self.kind == "int_uniform":
            return int(self.high - self.low) + 1
        return self._multiples[1] - self._multiples[0] + 1 if self.kind == "q_uniform" else math.inf

    @property
    def _multiples(self) -> tuple[int, int]:
        """The first and the last multiple of q within the bounds; a bound that is one but for rounding counts."""
        return math.ceil(self.low / self.q - 1e-9), math.floor(self.high / self.q + 1e-9)

    def at(self, u: float) -> Any:
        """The value at quantile u, which lies in [0, 1)."""
        if self.kind == "categorical":
            return self.values[int(u * len(self.values))]
        if self.kind == "int_uniform":
            return int(self.low) + int(u * (self.high - self.low + 1))
        if self.kind == "q_uniform":
            return _rounded((self._multiples[0] + int(u * self.size)) * self.q, 12)
        if self.kind == "log_uniform_values":
            return self.settle(math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low))))
        return self.settle(self.low + u * (self.high - self.low))

    def settle(self, value: Any) -> Any:
        """A value that another sampler drew, with as many digits as ours have."""
        if self.kind == "categorical":
            return value
        if self.kind == "int_uniform":
            return int(value)
        if self.kind == "q_uniform":
            return _rounded(round(value / self.q) * self.q, 12)
        return min(max(_rounded(value, SIGNIFICANT), self.low), self.high)

    def to_dict(self) -> dict[str, Any]:
        """As a sweep file says it, in full."""
        whole = self.kind == "int_uniform"
        low, high = (int(self.low), int(self.high)) if whole else (self.low, self.high)
        parts: dict[str, Any] = {"values": list(self.values), "min": low, "max": high, "q": self.q}
        return {"distribution": self.kind, **{key: parts[key] for key in KEYS[self.kind]}}


def quantile(seed: int, name: str, number: int) -> float:
    """The number in [0, 1) that decides the field `name` in draw `number`: 53 bits of a hash.

    Not of a generator's stream: it is the same in every version of every library, whatever else is drawn.
    """
    digest = hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def parse_distribution(name: str, entry: Mapping[str, Any]) -> Distribution:
    """The distribution of parameter `name`; raises ValueError that names it, what is wrong, and the choices."""
    kind = entry.get("distribution") or _default_kind(entry)
    if kind not in KEYS:
        raise ValueError(f"parameter {name}: distribution {kind!r} is not known: choose one of {', '.join(KEYS)}")
    allowed = ("distribution", *KEYS[kind])
    if unknown := [key for key in entry if key not in allowed]:
        raise ValueError(f"parameter {name}: {unknown[0]!r} does not go with {kind}: it takes {', '.join(KEYS[kind])}")
    if missing := [key for key in KEYS[kind] if key not in entry and key != "q"]:
        raise ValueError(f"parameter {name}: {kind} needs {missing[0]!r}")
    if kind == "categorical":
        return categorical(name, entry["values"])
    low, high, q = (_number(name, key, entry.get(key, 1)) for key in ("min", "max", "q"))
    distribution = Distribution(kind, low=low, high=high, q=q)
    _check_bounds(name, distribution)
    return distribution


def categorical(name: str, values: Any) -> Distribution:
    if not isinstance(values, list) or not values:
        raise ValueError(f"parameter {name}: values = {values!r}: give a list of at least one")
    if odd := [value for value in values if not isinstance(value, str | int | float | bool | None)]:
        raise ValueError(f"parameter {name}: {odd[0]!r} is no value of a config field")
    return Distribution("categorical", tuple(values))


def _default_kind(entry: Mapping[str, Any]) -> str:
    """What wandb takes where a file names no distribution."""
    if "values" in entry:
        return "categorical"
    if all(isinstance(entry.get(key), int) for key in ("min", "max")):
        return "int_uniform"
    return "uniform"


def _check_bounds(name: str, distribution: Distribution) -> None:
    low, high = distribution.low, distribution.high
    if low > high:
        raise ValueError(f"parameter {name}: min {low:g} is more than max {high:g}")
    if distribution.kind == "int_uniform" and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"parameter {name}: int_uniform needs whole numbers as min and max, not {low:g} and {high:g}")
    if distribution.kind == "log_uniform_values" and low <= 0:
        raise ValueError(f"parameter {name}: log_uniform_values needs a min above 0 (the value itself), not {low:g}")
    if distribution.kind == "q_uniform":
        if distribution.q <= 0:
            raise ValueError(f"parameter {name}: q = {distribution.q:g}: must be positive")
        if distribution.size < 1:
            raise ValueError(f"parameter {name}: no multiple of q = {distribution.q:g} lies in [{low:g}, {high:g}]")


def _number(name: str, key: str, value: Any) -> float:
    """YAML reads `1e-5` as a string."""
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except ValueError:
        pass
    raise ValueError(f"parameter {name}: {key} = {value!r}: must be a number")


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
