"""Which breeds the leading cells find hard: mean val Dice of each breed and species, with how little it may mean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from jobs.reporting.sections.pictures import read_dice
from jobs.reporting.sections.samples import ValSplit, load_facts
from jobs.reporting.statistics.records import Group
from jobs.reporting.statistics.verdict import Leaderboard
from jobs.runs.trial import Sweep
from petseg.targets.groups import kind_of

MAX_CELLS = 6
MAX_BREEDS = 60
MAX_FACTS = 5_000  # pictures whose KEY.json is read, 0.1 ms each on a local disk
STEP = 0.05  # the scale begins at a multiple of it
LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """Mean Dice of some pictures; reach: half of its interval for other such pictures, None of a single one."""

    value: float
    reach: float | None

    @property
    def low(self) -> float:
        """The lower end of its interval, within the bounds of Dice."""
        return max(0.0, self.value - (self.reach or 0.0))

    @property
    def high(self) -> float:
        return min(1.0, self.value + (self.reach or 0.0))


@dataclass(frozen=True)
class Row:
    """A breed or a species."""

    name: str
    species: str
    num_pictures: int
    means: tuple[Mean, ...]  # by cell


@dataclass(frozen=True)
class Breeds:
    """The content of the section."""

    cells: tuple[Group, ...]
    species: tuple[Row, ...]
    rows: tuple[Row, ...]  # the best cell's lowest Dice first
    left_out: int
    low: float  # where the scale begins; it ends at 1
    trouble: str  # why the breeds are not known, "" if they are

    def x(self, value: float) -> float:
        """The x coordinate of a value in a drawing 208 wide, clipped to the scale."""
        return 4 + 200 * (min(max(value, self.low), 1.0) - self.low) / (1 - self.low)


def build_breeds(board: Leaderboard, sweep: Sweep, shards: str = "") -> Breeds | None:
    """The breeds of the first MAX_CELLS cells of the leaderboard that were compared; None without one."""
    cells = board.val.groups[:MAX_CELLS] if board.val else ()
    measured = [_per_picture(group) for group in cells]
    if not measured:
        return None
    keys, dice = measured[0][0], np.stack([row for _, row in measured])
    first = cells[0].done[0]
    kinds, trouble = kinds_of(keys, ValSplit(first, sweep.hash_of(first.trial_status.trial), shards))
    if not kinds:
        return Breeds(cells, (), (), 0, 0.0, trouble)
    breeds = gather_rows([breed for breed, _ in kinds], dice, dict(kinds))
    breeds.sort(key=lambda row: (row.means[0].value, row.name))
    species = gather_rows([species for _, species in kinds], dice, {})
    lowest = min(mean.value for row in [*species, *breeds] for mean in row.means)
    low = max(0.0, min(1 - STEP, math.floor(lowest / STEP) * STEP))
    return Breeds(cells, tuple(species), tuple(breeds[:MAX_BREEDS]), max(0, len(breeds) - MAX_BREEDS), low, "")


def _per_picture(group: Group) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Keys and Dice (N,) of val pictures, averaged over the seeds of a group that was compared."""
    rows = [dice for record in group.done if (dice := read_dice(record.trial_status.trial.folder, "val"))]
    return rows[0][0], np.mean([dice for _, dice in rows], axis=0)


def kinds_of(keys: Sequence[str], where: ValSplit) -> tuple[list[tuple[str, str]], str]:
    """((breed, species) of each picture, "") from the shard set, else from the keys; or ([], why they are unknown)."""
    facts: Sequence[Mapping[str, Any]] = []
    trouble = f"val has more than {MAX_FACTS:,} pictures, and their facts are not read"
    if len(keys) <= MAX_FACTS:
        facts, trouble = load_facts(where, keys)
    if facts and all(one.get("breed") for one in facts):
        return [kind_of(key, one) for key, one in zip(keys, facts, strict=True)], ""
    kinds = [kind_of(key, {}) for key in keys]
    breeds = {breed for breed, _ in kinds}
    if 1 < len(breeds) <= len(keys) / 2:  # as those of Oxford-IIIT Pet; numbers and file names are no breeds
        return kinds, ""
    return [], f"the pictures' keys name no breeds, and {trouble or 'the shard set does not say them'}"


def gather_rows(names: Sequence[str], dice: NDArray[np.float64], species: Mapping[str, str]) -> list[Row]:
    """A row for each name; dice: (C, N)."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        members[name].append(position)
    return [
        Row(name, species.get(name, ""), len(members[name]), tuple(mean_of(row[members[name]]) for row in dice))
        for name in sorted(members)
    ]


def mean_of(values: NDArray[np.float64]) -> Mean:
    """The mean with half of its 95 % interval by Student's t."""
    count = len(values)
    if count < 2:
        return Mean(float(values.mean()), None)
    reach = special.stdtrit(count - 1, 0.5 + LEVEL / 2) * values.std(ddof=1) / math.sqrt(count)
    return Mean(float(values.mean()), float(reach))
