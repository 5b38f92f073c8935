"""Effects of the axes of a full factorial design, whose means follow a rule that is written down here."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.reporting.statistics.compare import Cells
from jobs.reporting.statistics.records import Group, Record
from jobs.reporting.statistics.verdict import MAX_LEVELS, Effects, compare, effects
from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import Result

ARCH, POLICY, LR = ["unet", "fcn"], ["none", "flip", "crop"], [1, 2]
GAIN = {"unet": 0.04, "fcn": 0.0, "none": 0.0, "flip": 0.01, "crop": 0.03, 1: 0.002, 2: 0.0}


def design(*levels: list[Any], axes: tuple[str, ...] = ("model.arch", "augment.policy", "optim.lr")) -> Any:
    """Groups, and their comparison: crop gains 0.02 more with unet, and the best cell stands first."""
    places = list(itertools.product(*levels))
    dice = {place: sum(GAIN.get(one, 0.0) for one in place) for place in places}
    dice |= {place: value + 0.02 for place, value in dice.items() if {"unet", "crop"} <= set(place)}
    order = sorted(places, key=lambda place: -dice[place])
    count = len(order)
    mean = np.array([dice[place] for place in order])
    variance = np.full(count, 1e-6)
    cells = Cells(mean, np.full(count, 3), 100, 1e-6 * np.eye(count), variance, np.zeros(count))
    groups = [Group(dict(zip(axes, place, strict=False)), ()) for place in places]
    return groups, SimpleNamespace(positions={place: i for i, place in enumerate(order)}, cells=cells)


def told(found: Effects) -> list[tuple[str, str, float]]:
    return [(one.name, one.other, round(one.value, 6)) for one in found.differences]


def test_each_axis_has_all_its_pairs_averaged_over_the_others() -> None:
    axes = ["model.arch", "augment.policy", "optim.lr"]
    groups, comparison = design(ARCH, POLICY, LR)
    main, interaction = effects(axes, groups, comparison)
    assert [one.axes for one in main] == [(axis,) for axis in axes]
    arch, policy, lr = map(told, main)
    assert arch == [("unet", "fcn", round(0.04 + 0.02 / 3, 6))]
    assert policy == [("none", "flip", -0.01), ("none", "crop", -0.04), ("flip", "crop", -0.03)]
    assert lr == [("lr=1", "lr=2", 0.002)]
    assert interaction
    assert interaction.axes == ("model.arch", "augment.policy")
    assert told(interaction) == [
        ("none over flip with unet", "with fcn", 0.0),
        ("none over crop with unet", "with fcn", -0.02),
        ("flip over crop with unet", "with fcn", -0.02),
    ]


@pytest.mark.parametrize(
    ("levels", "factors", "has_interaction"),
    [
        ((ARCH, list(range(MAX_LEVELS))), 2, True),
        ((ARCH, list(range(MAX_LEVELS + 1))), 1, False),
        ((list(range(MAX_LEVELS + 1)), ARCH), 1, False),
        ((ARCH, POLICY, list(range(10, 11 + MAX_LEVELS))), 2, True),
        ((list(range(MAX_LEVELS + 1)), list(range(20, 21 + MAX_LEVELS))), 0, False),
    ],
)
def test_a_fine_axis_is_averaged_over_and_no_factor(
    levels: tuple[list[Any], ...], factors: int, has_interaction: bool
) -> None:
    groups, comparison = design(*levels)
    axes = ["model.arch", "augment.policy", "optim.lr"][: len(levels)]
    main, interaction = effects(axes, groups, comparison)
    assert (len(main), interaction is not None) == (factors, has_interaction)


def test_a_design_with_a_hole_or_one_axis_has_no_effects() -> None:
    groups, comparison = design(ARCH, POLICY)
    comparison.positions.popitem()
    assert effects(["model.arch", "augment.policy"], groups, comparison) == ([], None)  # one is not compared
    assert effects(["model.arch", "augment.policy"], groups[:-1], comparison) == ([], None)  # one was never planned
    assert effects(["model.arch"], *design(ARCH)) == ([], None)


def test_a_cell_without_a_result_is_not_one_that_was_left_out(tmp_path: Path) -> None:
    """It waits; nothing is wrong with its pictures."""
    counts = np.array([[8, 4, 0], [6, 8, 0]])
    np.savez(tmp_path / "per_image.npz", **{"val/keys": np.array(["a", "b"]), "val/counts": counts})
    result = Result("x", {"val/dice": 0.7}, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)

    def group(label: str, done: bool) -> Group:
        status = TrialStatus(Trial(label, {}, tmp_path), "done" if done else "running")
        return Group({"arch": label}, (Record(status, {}, None, result if done else None, []),))

    found = compare([group("a", False), group("b", True)], "val")
    assert found
    assert ([one.label for one in found.groups], found.left_out) == (["b"], ())
    assert compare([group("a", False)], "val") is None
