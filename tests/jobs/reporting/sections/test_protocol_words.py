"""The protocol in words: what each of its facts says, of trials and sets that are written down here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.design.shard_sets import ShardSet
from jobs.reporting.sections import protocol as words
from jobs.reporting.sections.protocol import averaging, common, image_size, lengths, target_facts, target_text, training
from jobs.reporting.sections.trials import facts_of, reproduce
from jobs.reporting.statistics.records import Record
from jobs.runs.trial import Sweep, Trial
from jobs.state.trial_status import TrialStatus
from petseg.config import DataConfig
from petseg.run_folder.attempts import Attempt
from petseg.run_folder.layout import Result
from petseg.targets.target import Target, implied_target, packed_target
from petseg.targets.words import Words
from tests.jobs.reporting.sections.test_targets import street

RESULT = Result("x", {"val/dice": 0.5}, 1, 4, 1, 1, "node1", "cpu", 1.0, 1.0, 0.0, 1.0)


def record(result: Result | None = None, **values: Any) -> Record:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return Record(TrialStatus(Trial("x", {}, Path("lab/trials/x")), "done"), named, {}, result, [])


def several(*names: str) -> Target:
    return packed_target(DataConfig(), street(*names))


@pytest.mark.parametrize(
    ("groups", "units", "told"),
    [
        (
            3,
            [0, 1, 2],
            "3 groups (--group-by): intervals and tests are for other groups, since pictures of one are not",
        ),
        (1, None, "1 group (--group-by): intervals are for other pictures of this group, and say nothing about other"),
        (1000, None, "1,000 groups (--group-by): each picture is a group by itself"),
    ],
)
def test_what_groups_of_pictures_mean_for_intervals(groups: int, units: list[int] | None, told: str) -> None:
    val: Any = SimpleNamespace(num_pictures=1000, num_groups=groups, units=None if units is None else np.array(units))
    sweep = Sweep(Path("lab"), "lab", {}, "h", "x", ())
    text = words.groups_text(val)
    assert text.startswith(f"1,000 val pictures in {told}")
    assert dict(words.protocol(sweep, [], val))["Groups"] == text
    val.num_groups = 0
    assert "Groups" not in dict(words.protocol(sweep, [], val))


def test_how_dice_is_averaged() -> None:
    second = implied_target().names[1]
    assert averaging(implied_target()) == f"Dice and IoU of the {second} class per picture, then the mean over pictures"
    assert averaging(several("road", "car", "sky")) == (
        "Dice and IoU per picture, the mean over the 3 classes that are in its truth or prediction, then the mean over "
        "pictures"
    )


@pytest.mark.parametrize(("count", "more"), [(19, ""), (20, ""), (21, " and 1 more"), (30, " and 10 more")])
def test_up_to_twenty_classes_are_named(count: int, more: str) -> None:
    names = [f"c{number}" for number in range(count)]
    assert target_text(several(*names)) == f"as_packed, {count} classes: {', '.join(names[:20])}{more}"


def test_classes_are_told_where_they_are_not_the_implied_ones() -> None:
    assert [name for name, _ in target_facts([implied_target()], [])] == [implied_target().words.disputed.capitalize()]
    one, other = several("road", "car"), several("sky", "tree")
    (fact,) = target_facts([one, other], [])
    assert fact == ("Target", f"{target_text(one)}; {target_text(other)}")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([{"size": 256, "fit": "squash"}], "256 px square, pictures squashed to it"),
        ([{"size": 256}], "256 px square, pictures squashed to it"),  # of an earlier version
        (
            [{"size": "64x128", "fit": "letterbox"}],
            "64x128 px, pictures scaled to it in their own shape, margins not counted",
        ),
        ([{"size": 64, "fit": "new"}], "64 px square, new"),
        ([{"size": 64, "fit": "crop"}, {"size": 64, "fit": "squash"}], "64 px square, fitted by crop, squash"),
        ([], "unknown px square, pictures squashed to it"),
    ],
)
def test_the_size_of_pictures_and_how_they_get_it(values: list[dict[str, Any]], told: str) -> None:
    names = {"size": "data.image_size_px", "fit": "data.fit"}
    records = [replace(record(), values={names[key]: value for key, value in one.items()}) for one in values]
    assert image_size(records) == told


def test_a_value_that_all_share_or_all_values() -> None:
    records = [record(data__border="a"), record(), record(data__border="b"), record(data__border="a")]
    assert common(records[:2], "data.border", {"a": "in words"}) == "in words"
    assert common(records, "data.border", {"a": "in words"}) == "differs: in words, b"
    assert common(records, "data.fit") == "unknown"


@pytest.mark.parametrize(
    ("trials", "told"),
    [
        ([{"epochs": 30}] * 2, "epochs 30"),
        ([{"epochs": 30}, {"epochs": 60}], "differs: epochs 30, epochs 60"),
        ([{"epochs": 30, "budget_steps": 500, "budget_min": 0}], "optimizer steps 500"),
        ([{"epochs": 30, "budget_min": 7.5}], "minutes 7.5"),
        ([{}], "epochs unknown"),
    ],
)
def test_how_long_trials_train(trials: list[dict[str, Any]], told: str) -> None:
    records = [record(**{f"train__{name}": value for name, value in one.items()}) for one in trials]
    assert lengths(records) == told


@pytest.mark.parametrize(("epochs", "span"), [((4,), "4"), ((4, 4), "4"), ((9, 4, 12), "4 to 12")])
def test_minutes_end_after_as_many_epochs_as_fit(epochs: tuple[int, ...], span: str) -> None:
    records = [record(replace(RESULT, epochs=one), train__epochs=30, train__budget_min=5.0) for one in epochs]
    told = f"minutes 5 (by minutes as many steps as fit: {span} epochs, the last of them perhaps in part)"
    assert lengths([*records, record(RESULT, train__epochs=30)]).startswith("differs: minutes 5, epochs 30 (by minutes")
    assert lengths(records) == told


def test_the_training_in_a_line() -> None:
    values = {"train__epochs": 30, "train__batch_size": 32, "train__loss": "ce", "train__mixed_precision": "bf16"}
    values |= {"optim__name": "adamw", "optim__lr": 0.001, "optim__schedule": "cosine"}
    assert training([record(**values)]) == (
        "epochs 30, batch size 32, loss ce, mixed precision bf16, optimizer adamw 0.001 cosine"
    )


def test_the_floor_is_called_as_it_was_measured() -> None:
    implied, general = implied_target().words, Words()
    ours = record(replace(RESULT, metrics={"val/dice": 0.5, "val/one_class_dice": 0.4}))
    assert words.floor_words([ours]) == general
    assert words.floor_words([record(RESULT)]) == implied
    assert words.floor_words([record(RESULT), ours]) == general
    assert words.floor_words([], [implied_target()]) == implied
    assert words.floor_words([], [several("a", "b")]) == words.floor_words([]) == general


@pytest.mark.parametrize(("classes", "averaged"), [(0, True), (11, False)])
def test_a_sweep_that_has_not_begun_learns_what_its_set_is_known_for(classes: int, averaged: bool) -> None:
    noted = ShardSet("h", "/a", num_samples={"train": 1_000, "val": 5}, num_classes=classes)
    sweep = Sweep(Path("lab"), "lab", {}, "h", "x", (), shard_sets=(noted,))
    facts = dict(words.protocol(sweep, []))
    implied = averaging(implied_target())
    assert facts["Averaging"] == (implied if averaged else words.AVERAGING_OF_CLASSES)
    assert (facts["Shard set"], facts["Splits"], facts["Seeds"]) == ("/a", "1,000 train / 5 val", "unknown")
    seeds = [record(train__seed=seed) for seed in (3, 0, 3)]
    assert dict(words.protocol(sweep, seeds))["Seeds"] == "3, 0"


def test_sets_that_differ_are_named_by_their_places() -> None:
    one = ShardSet("h", "/a", "photos", "by us", {"val": 5})
    sweep = Sweep(Path("lab"), "lab", {}, "h", "x", (), shard_sets=(one, ShardSet("i", "/b")))
    assert words.shard_facts(sweep) == [
        ("Shard set", "/a: photos: by us; /b: /b"),
        ("Splits", "/a: 5 val; /b: unknown"),
        ("Near-identical pictures", "/a: not looked for: `python -m shards.duplicates /a` does; /b: unknown"),
        ("Manifest hash", "/a: h; /b: i"),
    ]


def attempt(number: int, host: str, code: str = "") -> Attempt:
    return Attempt(number, host, "1", code, 0, 0.0)


def test_facts_of_a_trial_name_all_that_it_ran_on() -> None:
    one = replace(record(RESULT), trial_status=TrialStatus(Trial("x", {}, Path("lab/trials/x")), "done", log="a.out"))
    attempts = (attempt(1, "node2", "abc"), attempt(2, "node3"), attempt(3, "node2", "abc"))
    assert facts_of(one, attempts, "h") == (
        ("log", "a.out"), ("data", "h"), ("code", "abc, then the working tree"), ("processes", "1"),
        ("host", "node2, then node3, then node1"), ("device", "cpu"), ("starts", "3"),
    )  # fmt: skip
    waits = replace(record(), trial_status=TrialStatus(Trial("x", {}, Path("lab/trials/x")), "running", host="node7"))
    facts = (("log", "none: not submitted yet"), ("config", "x/config.json"), ("data", "h"), ("host", "node7"))
    assert facts_of(replace(waits, config={"a": 1}), (), "h") == facts


def test_a_config_of_another_version_has_no_command() -> None:
    assert reproduce(replace(record(), config=None)) == ""
    assert reproduce(replace(record(), config={"no": "such"})).startswith("# not a config of this version: ")


def test_facts_that_no_set_tells_are_left_out_and_one_class_table_is_enough_to_know_nothing_of_classes() -> None:
    bare = Sweep(Path("lab"), "lab", {}, "h", "/data", ())
    assert words.shard_facts(bare) == [("Shard set", "/data"), ("Manifest hash", "h")]
    mixed = replace(bare, shard_sets=(ShardSet("h", "/a"), ShardSet("i", "/b", num_classes=3)))
    assert dict(words.protocol(mixed, []))["Averaging"] == words.AVERAGING_OF_CLASSES
