"""Runs that are stopped early because the runs beside them do better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run_folder.layout import PRUNED_NAME, claim_folder, load_pruned, load_result, read_metrics, write_metrics
from petseg.training import interrupt
from petseg.training.loop import Terms, train
from petseg.training.pruning import EarlyStop, Hyperband, StoppedEarly, is_best, value_at
from shards.command import Interrupted

STEPS_PER_EPOCH = 4
FIRST = Hyperband(min_iter=1, eta=2.5)  # rungs 1, 2 and 6; of two runs at a rung one passes, of three two


@pytest.mark.parametrize(
    ("rule", "epochs", "rungs"),
    [
        (Hyperband(min_iter=3), 100, (3, 9, 27, 81)),
        (Hyperband(min_iter=3), 81, (3, 9, 27)),  # after the last epoch there is nothing to stop
        (Hyperband(min_iter=3), 3, ()),
        (Hyperband(max_iter=27, s=2), 27, (3, 9)),  # wandb's own example: [9, 3]
        (Hyperband(max_iter=5, eta=2, s=2), 5, (1, 2)),
        (Hyperband(max_iter=27, s=10**9), 27, (1, 3, 9)),
        (Hyperband(min_iter=1, eta=1.5), 6, (1, 2, 3, 5)),  # 1, 1.5, 2.25, 3.4, 5.06 rounded down
    ],
)
def test_rungs_by_hand(rule: Hyperband, epochs: int, rungs: tuple[int, ...]) -> None:
    assert rule.rungs(epochs) == rungs


@given(st.integers(1, 50), st.floats(1.1, 9), st.integers(1, 300), st.booleans())
def test_rungs_lie_within_the_run(first: int, eta: float, epochs: int, strict: bool) -> None:
    rungs = Hyperband(min_iter=first, eta=eta, strict=strict).rungs(epochs)
    assert list(rungs) == sorted(set(rungs))
    assert all(first <= rung < epochs for rung in rungs)
    assert (first in rungs) == (first < epochs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40, unique=True), st.floats(1.1, 9))
def test_the_best_third_passes_and_the_first_to_come_always_does(values: list[float], eta: float) -> None:
    passed = [value for value in values if is_best(value, values, eta)[0]]
    assert max(values) in passed
    assert len(passed) == int(len(values) / eta) + 1
    assert min(passed) > max((value for value in values if value not in passed), default=-1)


def test_strict_compares_the_rung_and_else_the_best_up_to_it() -> None:
    rows = [{"epoch": 1, "val/dice": 0.8}, {"epoch": 2, "val/dice": 0.5}, {"epoch": 3, "val/dice": 0.9}]
    assert value_at(rows, 2, strict=True) == 0.5
    assert value_at(rows, 2, strict=False) == 0.8
    assert value_at(rows, 4, strict=False) is None


def beside(folder: Path, rule: Hyperband = FIRST) -> EarlyStop:
    """Early stopping by all other runs of a folder's parent."""
    return EarlyStop(rule, lambda: [other for other in sorted(folder.parent.iterdir()) if other != folder])


def neighbour(folder: Path, config: RunConfig, *dice: float) -> None:
    """A run beside the others that has had these val Dice."""
    claim_folder(config, "m", folder)
    write_metrics([{"epoch": epoch, "val/dice": value} for epoch, value in enumerate(dice, start=1)], folder)


def test_a_pruned_run_that_is_resumed_ends_with_the_same_numbers(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny(train__epochs=3, optim__lr=1e-4)
    alone = tmp_path / "alone" / "calm"
    calm = train(config, alone, Terms(early=beside(alone)))  # nobody is there
    own = read_metrics(tmp_path / "alone" / "calm")
    neighbour(tmp_path / "trials" / "better", with_values(config, {"train.seed": 1}), 0.1, 1.0)
    neighbour(tmp_path / "trials" / "finer", with_values(config, {"data.image_size_px": 128}), 1.0, 1.0)
    neighbour(tmp_path / "trials" / "early", with_values(config, {"train.seed": 2}), 0.1)
    (tmp_path / "trials" / "no run").mkdir()
    folder = tmp_path / "trials" / "own"
    with pytest.raises(StoppedEarly, match="stopped early after epoch 2 of 3, best val Dice 0"):
        # at the first rung it was the best, and `finer` is another measure
        train(config, folder, Terms(early=beside(folder)))
    pruned = load_pruned(folder)
    assert pruned is not None
    assert (pruned.epoch, pruned.epochs, pruned.threshold, pruned.compared_with) == (2, 3, 1.0, 1)
    assert pruned.best == max(row["val/dice"] for row in own[:2])
    assert load_result(folder) is None
    assert [row["epoch"] for row in read_metrics(folder)] == [1, 2]
    with pytest.raises(StoppedEarly):  # for good
        train(config, folder, Terms(early=beside(folder)))
    assert len(read_metrics(folder)) == 2

    assert train(config, folder).metrics == calm.metrics
    assert not (folder / PRUNED_NAME).exists()
    assert [row["val/dice"] for row in read_metrics(folder)] == [row["val/dice"] for row in own]


def test_the_next_attempt_decides_a_rung_at_which_the_run_was_killed(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = tmp_path / "own", tiny(train__epochs=3)
    neighbour(tmp_path / "better", with_values(config, {"train.seed": 1}), 1.0)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("petseg.training.pruning.save_pruned", die)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder, Terms(early=beside(folder)))
    assert load_pruned(folder) is None
    with pytest.raises(StoppedEarly, match="after epoch 1 of 3"):
        train(config, folder, Terms(early=beside(folder)))


def test_a_run_passes_a_rung_only_once(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the first to come there, and was interrupted in the next epoch, when better ones had come."""
    folder, config = tmp_path / "own", tiny(train__epochs=3, train__log_every=1)
    asked = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked) == STEPS_PER_EPOCH + 2)
        with pytest.raises(Interrupted, match="epoch 1 and 2 steps"):
            train(config, folder, Terms(early=beside(folder, Hyperband(min_iter=1, eta=9))))
    neighbour(tmp_path / "better", with_values(config, {"train.seed": 1}), 1.0)
    assert train(config, folder, Terms(early=beside(folder, Hyperband(min_iter=1, eta=9)))).epochs == 3


def test_a_pruned_json_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / PRUNED_NAME).write_text('{"epoch": 1}')
    with pytest.raises(ValueError, match=r"pruned.json was written by another version .* delete it to go on"):
        load_pruned(tmp_path)
