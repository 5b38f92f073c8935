"""Which kinds or groups of pictures the leading cells find hard: mean val Dice of each, with how little it may mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.reporting.sections.breakdown.rows import MAX_CELLS, Row, Scale, gather_rows, scale_of
from jobs.reporting.sections.samples import ValSplit, load_facts
from jobs.reporting.sections.targets import target_of
from jobs.reporting.statistics.per_image import PerImage, read_seeds
from jobs.reporting.statistics.records import Group
from jobs.reporting.statistics.verdict import Leaderboard
from jobs.runs.trial import Sweep
from petseg.targets.groups import kinds_of_samples

MAX_ROWS = 60
MAX_FACTS = 5_000  # pictures whose KEY.json is read, 0.1 ms each on a local disk


@dataclass(frozen=True)
class ByGroup:
    """The content of the section."""

    noun: str  # what a row is: group, or the word of the target for its kinds
    cells: tuple[Group, ...]
    wider: tuple[Row, ...]  # of wider groups, such as species
    rows: tuple[Row, ...]  # the best cell's lowest Dice first
    left_out: int
    scale: Scale
    trouble: str  # why the kinds are not known, "" if they are


def build_by_group(board: Leaderboard, sweep: Sweep, shards: str = "") -> ByGroup | None:
    """The kinds of pictures that the target knows, else the groups that they come in, of the first cells compared.

    None without a cell, and where pictures are in no groups.
    """
    cells = board.val.groups[:MAX_CELLS] if board.val else ()
    measured = [_per_picture(group) for group in cells]
    if not measured:
        return None
    pictures, dice = measured[0][0], np.stack([row for _, row in measured])
    first = cells[0].done[0]
    where = ValSplit(first, sweep.hash_of(first.trial), shards)
    noun = target_of(first).words.kind
    if not noun:
        groups = groups_of(pictures, where)
        return _section("group", cells, (), gather_rows(groups, dice)) if groups else None
    kinds, trouble = kinds_of(pictures.keys, where)
    if not kinds:
        trouble = f"the pictures' keys name no {noun}s, and {trouble}"
        return ByGroup(noun, cells, (), (), 0, Scale(0.0), trouble)
    species = gather_rows([species for _, species in kinds], dice)
    return _section(noun, cells, species, gather_rows([kind for kind, _ in kinds], dice))


def _section(noun: str, cells: tuple[Group, ...], wider: Sequence[Row], rows: list[Row]) -> ByGroup:
    rows.sort(key=lambda row: (row.means[0].value, row.name))
    left_out = max(0, len(rows) - MAX_ROWS)
    return ByGroup(noun, cells, tuple(wider), tuple(rows[:MAX_ROWS]), left_out, scale_of([*wider, *rows]), "")


def _per_picture(group: Group) -> tuple[PerImage, NDArray[np.float64]]:
    """The val pictures of a group that was compared, and their Dice (N,) averaged over its seeds."""
    runs = read_seeds(group, "val")
    return runs[0], np.mean([one.dice for one in runs], axis=0)


def groups_of(pictures: PerImage, where: ValSplit) -> list[str]:
    """The group of each picture, from the run's folder, else from the shard set; [] if each is a group by itself."""
    groups: Sequence[str] = pictures.groups
    if not groups and len(pictures.keys) <= MAX_FACTS:
        facts, _ = load_facts(where, pictures.keys)
        groups = [str(one.get("group") or "") for one in facts]
    return list(groups) if all(groups) and 1 < len(set(groups)) < len(groups) else []


def kinds_of(keys: Sequence[str], where: ValSplit) -> tuple[list[tuple[str, str]], str]:
    """((kind, species) of each picture, "") from the shard set, else from the keys; or ([], why the set tells none)."""
    facts: Sequence[Mapping[str, Any]] = []
    trouble = f"val has more than {MAX_FACTS:,} pictures, and their facts are not read"
    if len(keys) <= MAX_FACTS:
        facts, trouble = load_facts(where, keys)
    kinds = kinds_of_samples(keys, facts)
    return kinds, "" if kinds else trouble or "the shard set does not say them"
