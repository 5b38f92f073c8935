"""The leaderboard of a sweep: its means with intervals, the differences that are shown, and effects of the axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.design.shard_sets import ShardSet
from jobs.reporting.statistics.compare import LEVEL, Cells, Intervals, contrasts, means, pairs, rank_ranges, summarise
from jobs.reporting.statistics.per_image import read_seeds
from jobs.reporting.statistics.power import Noise, noise_of
from jobs.reporting.statistics.records import NOISE_DICE, Group, Record, axis_text, gather, varied
from jobs.reporting.statistics.units import by_unit, number_units
from jobs.runs.trial import Sweep

MAX_LEVELS = 8  # of a factor: a finer axis is a scale, and its thousands of pairs of values say nothing
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Mean:
    """A group's mean Dice with its own 95 % interval, as much of it as lies within [0, 1]."""

    value: float
    low: float
    high: float
    pictures_only: bool  # one seed: another training run is not accounted for
    ranks: tuple[int, int]  # best and worst that it may have


@dataclass(frozen=True)
class Difference:
    """One minus the other, with its interval and p value after all looks of its family: the interval, which holds
    together with the family's others in 95 % of sweeps, excludes 0 exactly where p < LEVEL."""

    name: str
    other: str
    value: float
    low: float
    high: float
    p: float | None  # None: known of pictures alone

    @property
    def finding(self) -> str:
        """apart; same: NOISE_DICE either way is ruled out; open: neither is shown; unknown: one seed."""
        if self.p is None:
            return "unknown"
        if self.p < LEVEL:
            return "apart"
        return "same" if max(-self.low, self.high) < NOISE_DICE else "open"

    @property
    def turned(self) -> Difference:
        return Difference(self.other, self.name, -self.value, -self.high, -self.low, self.p)

    @property
    def upright(self) -> Difference:
        """The higher one first."""
        return self if self.value >= 0 else self.turned


@dataclass(frozen=True)
class Comparison:
    """Groups on the same pictures of a split, highest mean first."""

    groups: tuple[Group, ...]
    num_pictures: int
    cells: Cells
    means: dict[tuple[Any, ...], Mean]  # by the group's key
    differences: Intervals  # row minus column
    left_out: tuple[Group, ...]  # finished, but without the same per_image.npz as the others
    units: NDArray[np.int64] | None = None  # (N,) the group of each picture, where intervals are for other groups
    num_groups: int = 0  # that the pictures come in; 0 in a set that was packed without --group-by

    def mean(self, group: Group) -> Mean | None:
        return self.means.get(group.key)

    @cached_property
    def positions(self) -> dict[tuple[Any, ...], int]:
        return {group.key: i for i, group in enumerate(self.groups)}

    def difference(self, i: int, j: int) -> Difference:
        one = self.differences
        value, low, high, p = (float(array[i, j]) for array in (one.value, one.low, one.high, one.p))
        return Difference(self.groups[i].label, self.groups[j].label, value, low, high, _known(p))

    def from_best(self, group: Group) -> Difference | None:
        """The group minus the best; None for the best, and for a group that is not compared."""
        i = self.positions.get(group.key, 0)
        return self.difference(i, 0) if i else None

    @property
    def unit(self) -> str:
        """What the intervals are for others of: pictures, or the groups that pictures come in."""
        return "pictures" if self.units is None else "groups of pictures"

    @cached_property
    def noise(self) -> Noise | None:
        """The spreads of runs and pictures in these groups; None if they are unknown."""
        noise = noise_of(self.cells)
        return replace(noise, unit=self.unit) if noise else None


@dataclass(frozen=True)
class Effects:
    """Differences between the values of one axis, all else averaged; or how they differ between those of another."""

    axes: tuple[str, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Leaderboard:
    """The comparison of a sweep, computed once."""

    axes: list[str]
    groups: list[Group]
    by_split: dict[str, Comparison]
    main: list[Effects]
    interaction: Effects | None
    sets: tuple[ShardSet, ...] = ()  # what the sweep noted of its data at submission

    @property
    def val(self) -> Comparison | None:
        return self.by_split.get("val")

    def mean(self, split: str, group: Group) -> Mean | None:
        return self.by_split[split].mean(group) if split in self.by_split else None


def build_leaderboard(sweep: Sweep, records: Sequence[Record]) -> Leaderboard:
    axes = varied(sweep, records)
    groups = gather(axes, records)
    by_split = {split: one for split in SPLITS if (one := compare(groups, split))}
    main, interaction = effects(axes, groups, by_split["val"]) if "val" in by_split else ([], None)
    return Leaderboard(axes, groups, by_split, main, interaction, sweep.shard_sets)


def compare(groups: Sequence[Group], split: str) -> Comparison | None:
    """The comparison of the groups that were measured on the same pictures; None with fewer than two pictures.

    The pictures are those that most groups share.
    """
    finished = [group for group in groups if group.spread(f"{split}/dice")]
    measured = {group.key: _measured(group, split) for group in finished}
    keys = [entry[0] for entry in measured.values() if entry]
    if not keys:
        return None
    common = max(dict.fromkeys(keys), key=keys.count)
    if len(common) < 2:
        return None
    same = [(g, entry[1]) for g in finished if (entry := measured[g.key]) and entry[0] == common]
    groups_known = (entry[2] for entry in measured.values() if entry and entry[0] == common and entry[2])
    groups_of_pictures = next(groups_known, ())
    units = number_units(groups_of_pictures)
    same.sort(key=lambda pair: -pair[1].mean(axis=1).mean())
    cells = summarise([by_unit(dice, units) for _, dice in same])
    differences, alone = pairs(cells), means(cells)
    columns = (alone.value, alone.low, alone.high, alone.pictures_only, rank_ranges(differences))
    by_key = {
        group.key: Mean(
            float(value), max(0.0, float(low)), min(1.0, float(high)), bool(only), (int(ranks[0]), int(ranks[1]))
        )
        for (group, _), value, low, high, only, ranks in zip(same, *columns, strict=True)
    }
    left_out = tuple(group for group in finished if group.key not in by_key)
    return Comparison(
        tuple(g for g, _ in same),
        len(common),
        cells,
        by_key,
        differences,
        left_out,
        units,
        len(set(groups_of_pictures)),
    )


def _measured(group: Group, split: str) -> tuple[tuple[str, ...], Any, tuple[str, ...]] | None:
    """Keys, (S, N) Dice and the pictures' groups; None if its trials do not all have the same pictures."""
    runs = read_seeds(group, split)
    if len(runs) < len(group.done) or len({one.keys for one in runs}) != 1:
        return None
    return runs[0].keys, np.stack([one.dice for one in runs]), next((one.groups for one in runs if one.groups), ())


def effects(
    axes: Sequence[str], groups: Sequence[Group], comparison: Comparison
) -> tuple[list[Effects], Effects | None]:
    """Main effects of each axis and the interaction of the first two, of a full factorial design: every combination
    of values finished. ([], None) of any other, whose averages would compare unlike with unlike.

    Main effects are one family of looks, interactions another. Axes of more than MAX_LEVELS values are averaged over.
    """
    levels = [list(dict.fromkeys(group.axes[name] for group in groups)) for name in axes]
    positions = comparison.positions
    complete = len(positions) == len(groups) == math.prod(map(len, levels))
    if len(axes) < 2 or not complete:
        return [], None
    factors = [at for at, values in enumerate(levels) if len(values) <= MAX_LEVELS]
    names, rows = [], []
    for at in factors:
        for one, other in itertools.combinations(levels[at], 2):
            names.append((axis_text(axes[at], one), axis_text(axes[at], other)))
            rows.append(_weights(positions, {at: {one: 1.0, other: -1.0}}))
    differences = iter(_differences(comparison.cells, names, rows))
    main = [Effects((axes[at],), tuple(itertools.islice(differences, math.comb(len(levels[at]), 2)))) for at in factors]
    return main, _interaction(axes, levels, comparison) if {0, 1} <= set(factors) else None


def _interaction(axes: Sequence[str], levels: Sequence[list[Any]], comparison: Comparison) -> Effects:
    """How far the gain of one value of the second axis over another depends on the value of the first axis."""
    names, rows = [], []
    for (one, other), (left, right) in itertools.product(*(itertools.combinations(levels[at], 2) for at in (0, 1))):
        gain = f"{axis_text(axes[1], left)} over {axis_text(axes[1], right)}"
        names.append((f"{gain} with {axis_text(axes[0], one)}", f"with {axis_text(axes[0], other)}"))
        signs = {0: {one: 1.0, other: -1.0}, 1: {left: 1.0, right: -1.0}}
        rows.append(_weights(comparison.positions, signs))
    return Effects(tuple(axes[:2]), tuple(_differences(comparison.cells, names, rows)))


def _weights(positions: dict[tuple[Any, ...], int], signs: dict[int, dict[Any, float]]) -> list[float]:
    """The weight of each cell: +1, -1 or 0 by its values on some axes, averaged over all other axes."""
    raw = [math.prod(sign.get(key[at], 0.0) for at, sign in signs.items()) for key in positions]
    share = sum(abs(weight) for weight in raw) / 2 ** len(signs)
    return [weight / share for weight in raw]


def differences_of(names: tuple[str, str], compared: Intervals) -> list[Difference]:
    """Contrasts of the same two cells, one for each of several sets of pictures."""
    numbers = zip(compared.value, compared.low, compared.high, compared.p, strict=True)
    return [Difference(*names, float(value), float(low), float(high), _known(one)) for value, low, high, one in numbers]


def _differences(cells: Cells, names: Sequence[tuple[str, str]], rows: Sequence[list[float]]) -> list[Difference]:
    if not rows:
        return []
    compared = contrasts(cells, np.array(rows))
    numbers = zip(compared.value, compared.low, compared.high, compared.p, strict=True)
    return [
        Difference(name, other, float(value), float(low), float(high), _known(one))
        for (name, other), (value, low, high, one) in zip(names, numbers, strict=True)
    ]


def _known(p: float) -> float | None:
    return float(p) if math.isfinite(p) else None
