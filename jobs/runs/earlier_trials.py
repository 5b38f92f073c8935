"""A sweep's name that is used again with other settings: its earlier trials stay in the folder, and in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.design.expansion import Cell
from jobs.runs.trial import Sweep, Trial
from petseg.config import RunConfig
from petseg.config.values import config_to_dict, flatten, identity_names
from petseg.run_folder.layout import load_config

NAMED = 3  # fields, and values of each


def earlier_line(sweep: Sweep, chosen: Mapping[str, Cell], most: int = NAMED) -> str:
    """A line about trials that are no points of the present grid; empty if there are none.

    Another place on an axis is no other setting: part of a sweep can be run again, and an axis can grow.
    """
    others = [trial for trial in sweep.trials if trial.id not in chosen]
    differing: dict[str, tuple[set[str], set[str]]] = {}
    count = 0
    now = [flatten(config_to_dict(cell.config)) for cell in chosen.values()]
    axes = {name for cell in chosen.values() for name in cell.axes}
    for trial in others:
        changed = list(_changed(trial, now, axes))
        count += bool(changed)
        for name, old, new in changed:
            before, after = differing.setdefault(name, (set(), set()))
            before.add(old)
            after.update(new)
    if not count:
        return ""
    listed = ", ".join(f"{name} {_some(old)}, now {_some(new)}" for name, (old, new) in [*differing.items()][:most])
    more = f", and {len(differing) - most} more fields" if len(differing) > most else ""
    return (
        f"{sweep.folder} has {count} trial{'s' * (count > 1)} of other settings ({listed}{more}): they stay in it, and "
        "in its report beside the new ones; another --name keeps them apart"
    )


def _changed(trial: Trial, now: list[dict[str, Any]], axes: set[str]) -> Iterator[tuple[str, str, set[str]]]:
    """The fields, no axes, in which an earlier trial has a value that no cell has now: (name, old, new values)."""
    try:
        stored = flatten(load_config(trial.folder)["config"])
    except (ValueError, KeyError, TypeError):
        return  # never written, or damaged: what it was cannot be told
    defaults = flatten(config_to_dict(RunConfig()))
    for name in sorted(identity_names() - axes):
        old, new = stored.get(name, defaults[name]), {str(cell[name]) for cell in now}
        if str(old) not in new:
            yield name, str(old), new


def _some(values: set[str]) -> str:
    shown = sorted(values)
    return "/".join(shown[:NAMED]) + ("/..." if len(shown) > NAMED else "")
