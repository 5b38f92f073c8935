"""The decision at a rung, from the files of a run and its peers alone."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import pytest

from petseg.config import RunConfig
from petseg.config.values import trial_id, with_values
from petseg.run.progress import Best, Progress
from petseg.run_folder.layout import Pruned, claim_folder, write_metrics
from petseg.training.pruning import EarlyStop, Hyperband, decide, dice_settings, is_best, value_at, values_of_peers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give min_iter, or else max_iter together with s"),
        ({"min_iter": 1, "max_iter": 9, "s": 1}, "give min_iter, or else max_iter together with s"),
        ({"min_iter": 1, "s": 1}, "give min_iter, or else max_iter together with s"),
        ({"max_iter": 9}, "give min_iter, or else max_iter together with s"),
        ({"min_iter": -1}, "min_iter = -1: must be a whole number"),
        ({"min_iter": 1.0}, "min_iter = 1.0: must be a whole number"),
        ({"max_iter": 9, "s": -1}, "s = -1: must be a whole number"),
        ({"max_iter": True, "s": 1}, "max_iter = True: must be a whole number"),
        ({"min_iter": 1, "eta": 1.09}, "eta = 1.09: must be a number of at least 1.1"),
        ({"min_iter": 1, "eta": math.inf}, "eta = inf: must be a number"),
        ({"min_iter": 1, "eta": math.nan}, "eta = nan: must be a number"),
        ({"min_iter": 1, "eta": True}, "eta = True: must be a number"),
        ({"min_iter": 1, "eta": "3"}, "eta = '3': must be a number"),
        ({"min_iter": 1, "strict": 1}, "strict = 1: must be true or false"),
        ({"max_iter": 2, "s": 1}, "max_iter = 2 leaves no rung at eta = 3: lower eta"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hyperband(**values)


def test_rules_at_their_bounds_are_allowed() -> None:
    assert Hyperband(min_iter=1, eta=1.1).rungs(3) == (1, 2)
    assert Hyperband(max_iter=3, s=1).rungs(3) == (1,)
    assert Hyperband(max_iter=9, s=1, eta=3).rungs(4) == (3,)
    assert Hyperband(max_iter=9, s=1, eta=3).rungs(3) == ()


@pytest.mark.parametrize(
    ("own", "values", "eta", "passes", "threshold"),
    [
        (0.5, [0.5], 3.0, True, 0.5),
        (0.5, [0.5, 0.9], 3.0, False, 0.9),
        (0.5, [0.5, 0.9, 0.7], 3.0, False, 0.7),
        (0.7, [0.7, 0.9, 0.5], 3.0, True, 0.7),
        (0.5, [0.5, 0.9], 2.0, True, 0.5),
    ],
)
def test_the_threshold_by_hand(own: float, values: list[float], eta: float, passes: bool, threshold: float) -> None:
    assert is_best(own, values, eta) == (passes, threshold)


def test_a_dice_that_is_no_number_is_no_value() -> None:
    rows = [{"epoch": 1, "val/dice": math.nan}, {"epoch": 2, "val/dice": 0.5}, {"epoch": 3, "val/dice": 0.25}]
    assert value_at(rows, 1, strict=False) is None
    assert value_at(rows, 3, strict=False) == 0.5
    assert value_at(rows, 3, strict=True) == 0.25


def folder_of(path: Path, *dice: float, **changes: Any) -> Path:
    """A run that has had these val Dice, 2 seconds an epoch."""
    claim_folder(with_values(RunConfig(), {name.replace("__", "."): v for name, v in changes.items()}), "m", path)
    rows = [{"epoch": epoch, "val/dice": value, "perf/seconds": 2.0} for epoch, value in enumerate(dice, start=1)]
    write_metrics(rows, path)
    return path


def test_peers_that_reached_the_rung_with_the_same_dice_count(tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", 0.5, 0.4)
    peers = [
        folder_of(tmp_path / "a", 0.1, 0.6, 0.2, train__seed=1),
        folder_of(tmp_path / "b", 0.9, train__seed=2),
        folder_of(tmp_path / "c", 0.9, 0.9, data__border="ignore"),
        folder_of(tmp_path / "d", 0.9, 0.9, data__fit="letterbox"),
        folder_of(tmp_path / "e", 0.9, 0.9, data__image_size_px=128),
        folder_of(tmp_path / "f", 0.9, 0.9, data__target="species"),
        tmp_path / "gone",
        folder_of(tmp_path / "g", 0.1, 0.3, optim__lr=0.5),
    ]
    assert list(values_of_peers(own, peers, 2)) == [0.6, 0.3]
    assert dice_settings(own) == [256, None, "fg", None]
    assert dice_settings(tmp_path / "gone") == []


def test_the_outcome_of_a_run_that_ends_at_a_rung(tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", 0.5, 0.4)
    peers = [folder_of(tmp_path / str(seed), 0.1, dice, train__seed=seed) for seed, dice in ((1, 0.8), (2, 0.7))]
    progress = Progress(4, 12, epoch=2, best=Best(4, 1, 0.5))
    early = EarlyStop(Hyperband(min_iter=2, eta=3.0), lambda: peers)
    assert decide(own, progress, early) == Pruned(
        trial_id=trial_id(RunConfig(), "m"), epoch=2, epochs=3, best_epoch=1, best=0.5, value=0.5, threshold=0.7,
        compared_with=2, host=socket.gethostname(), train_s=4.0,
    )  # fmt: skip


def test_the_value_of_a_run_is_that_at_the_rung_if_the_rule_is_strict(tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", 0.5, 0.4)
    peer = folder_of(tmp_path / "peer", 0.1, 0.45, train__seed=1)
    progress = Progress(4, 12, epoch=2, best=Best(4, 1, 0.5))
    assert decide(own, progress, EarlyStop(Hyperband(min_iter=2), lambda: [peer])) is None
    pruned = decide(own, progress, EarlyStop(Hyperband(min_iter=2, strict=True), lambda: [peer]))
    assert pruned is not None
    assert (pruned.value, pruned.threshold, pruned.best) == (0.4, 0.45, 0.5)


def test_a_run_that_has_no_value_at_the_rung_goes_on(tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", 0.5)
    peer = folder_of(tmp_path / "peer", 0.9, 0.9, train__seed=1)
    early = EarlyStop(Hyperband(min_iter=2), lambda: [peer])
    assert decide(own, Progress(4, 12, epoch=2), early) is None
