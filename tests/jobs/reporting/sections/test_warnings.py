"""What a reader is warned of before believing the tables, and what the warnings are computed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.reporting.sections.protocol import floor_of, floors, state_counts, values_of, warnings
from jobs.reporting.statistics.records import Record
from jobs.runs.trial import Trial
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import Result

AXES = ["model.arch"]


def record(number: int, status: str = "done", dice: float | None = 0.9, **values: Any) -> Record:
    """A trial of seed `number` whose values are keywords with __ for the dot; dice: None without a result."""
    named = {"train.seed": number} | {name.replace("__", "."): value for name, value in values.items()}
    trial = Trial(f"{number:010x}", {"train.seed": number}, Path("none"))
    metrics = {"val/dice": dice or 0.0, "val/all_pet_dice": 0.5, "test/all_pet_dice": 0.52}
    result = Result(trial.id, metrics, 1, 1, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)
    return Record(TrialStatus(trial, status), named, {"a": "config"}, None if dice is None else result, [])


def test_a_finished_sweep_of_several_seeds_needs_no_warning() -> None:
    assert warnings([record(0), record(1)], AXES, AXES) == []


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("data.image_size_px", "image size"), ("data.fit", "fit"), ("data.border", "border rule"),
        ("data.target", "target"), ("data.shards", "shard set"),
    ],
)  # fmt: skip
def test_trials_that_are_not_measured_alike(field: str, word: str) -> None:
    records = [record(0, **{field: "a"}), record(1, **{field: "b"}), record(2, **{field: "a"}), record(3)]
    (warned,) = warnings(records, [field, *AXES], AXES)
    assert warned.startswith(f"The trials differ in {word} (a, b): their Dice is not the same measure")
    assert values_of(records, field) == ["a", "b"]
    assert warnings(records, AXES, AXES) == []  # no axis: then the values are those of one trial
    (unknown,) = warnings([record(0), record(1)], [field], [field])
    assert f"differ in {word} (unknown)" in unknown


def test_fields_that_the_sweep_does_not_vary() -> None:
    (warned,) = warnings([record(0), record(1)], [*AXES, "optim.lr", "data.threads"], AXES)
    assert warned.startswith("The trials also differ in optim.lr, data.threads, which the sweep does not vary")


def test_trials_without_a_readable_config_are_named() -> None:
    lost = [Record(one.trial_status, one.values, None, one.result, []) for one in (record(1), record(2))]
    (warned,) = warnings([record(0), *lost], AXES, AXES)
    assert warned.startswith("No readable config.json for 0000000001, 0000000002: placed by the axes")


@pytest.mark.parametrize("count", [1, 20, 21, 23])
def test_trials_that_were_stopped_early_are_listed_up_to_twenty(count: int) -> None:
    pruned = [record(number, "pruned", None) for number in range(count)]
    (warned,) = warnings([record(90), record(91), *pruned], AXES, AXES)
    assert warned.startswith(f"{count} trials were stopped early")
    assert warned.count("seed=") == min(count, 20)
    assert "0000000000 seed=0" in warned
    assert warned.endswith(f"; and {count - 20} more." if count > 20 else f"seed={count - 1}.")


def test_trials_that_are_not_done_are_counted_by_their_state() -> None:
    records = [record(0), record(1, "failed", None), record(2, "running", None), record(3, "running", None)]
    records.append(record(4, "pruned", None))
    stopped, waiting = warnings(records, AXES, AXES)
    assert "stopped early" in stopped
    assert waiting.startswith("Not all of the 5 trials are done (2 running, 1 failed): means are over")
    assert state_counts(records) == [("done", 1), ("running", 2), ("failed", 1), ("pruned", 1)]
    assert state_counts([record(0)]) == [("done", 1), ("failed", 0)]


def test_trials_below_the_floor_have_learnt_nothing() -> None:
    at, below = record(0, dice=0.5), record(1, dice=0.49)
    assert warnings([at, record(2)], AXES, AXES) == []
    (warned,) = warnings([at, below, record(2, "failed", None), record(3)], AXES, AXES)[1:]
    assert warned == "1 finished trials are below the all-pet guess (0.5000): they have learnt nothing."
    assert floor_of([at, below], "test") == 0.52
    assert floor_of([record(0, dice=None)], "val") is None
    assert floors([at]) == "Dice 0.5000 val, 0.5200 test: a model below it has learnt nothing"
    assert floors([]) == "not measured yet"


def test_a_single_seed_is_said_and_a_missing_one_counts_as_one() -> None:
    said = "A single seed (train.seed): the spread between reruns is not known."
    assert warnings([record(1), record(1)], AXES, AXES) == [said]
    no_seed = [Record(one.trial_status, {}, one.config, one.result, []) for one in (record(0), record(1))]
    assert warnings(no_seed, AXES, AXES) == [said]
