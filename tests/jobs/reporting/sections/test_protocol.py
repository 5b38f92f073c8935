"""The protocol beside the numbers."""

from dataclasses import replace

import pytest

from jobs.reporting.sections.protocol import protocol
from jobs.reporting.statistics.records import read_records
from jobs.runs.trial import Sweep
from tests.jobs.reporting.written_sweep import Lab, finish


def test_protocol_says_what_the_numbers_mean(finished: Sweep, lab: Lab) -> None:
    facts = dict(protocol(finished, read_records(finished)))
    assert facts["Shard set"] == "drawn: by hand & <with care>"
    assert facts["Splits"] == "90 train / 10 val"
    assert facts["Manifest hash"] == finished.manifest_hash
    assert facts["Border"] == "border counts as pet (fg)"
    assert facts["Image size"].startswith("256 px")
    assert "0.5500 val, 0.5600 test" in facts["All-pet guess"]
    (lab.shards / "manifest.json").unlink()  # what was noted at submission is known without the set
    assert dict(protocol(finished, read_records(finished))) == facts
    noted = replace(finished, shard_sets=())  # by an earlier version
    facts = dict(protocol(noted, read_records(noted)))
    assert facts["Shard set"] == str(lab.shards)
    assert facts["Manifest hash"] == finished.manifest_hash


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "epochs 2, batch size 32"),
        ({"train.budget_steps": [500]}, "optimizer steps 500, batch"),
        ({"train.budget_min": [30.0]}, "minutes 30 (by minutes as many steps as fit: 3 to 5 epochs, the last"),
        ({"train.budget_steps": [0, 500]}, "differs: epochs 2, optimizer steps 500, batch"),
    ],
)
def test_protocol_says_how_long_the_trials_train(axes: dict[str, list], said: str, lab: Lab) -> None:
    lab.axes = {**axes, "train.seed": [0, 1, 2]}
    sweep = lab.plan()
    for trial, epochs in zip(sweep.trials, (5, 3, 4), strict=False):
        finish(trial, 0.9, epochs)
    assert dict(protocol(sweep, read_records(sweep)))["Training"].startswith(said)


def test_protocol_says_how_many_near_identical_pictures_lie_across_splits(finished: Sweep) -> None:
    (noted,) = finished.shard_sets
    for counts, said in (
        (None, f"not looked for: `python -m shards.duplicates {noted.location}` does"),
        ({"train-test": 0}, "no near-identical pictures lie across splits"),
        ({"train-test": 18, "val-test": 2}, "20 near-identical pairs lie across splits (18 train-test, 2 val-test)"),
    ):
        sweep = replace(finished, shard_sets=(replace(noted, near_duplicates=counts),))
        assert dict(protocol(sweep, read_records(sweep)))["Near-identical pictures"] == said


def test_what_shard_sets_have_in_common_is_said_once(finished: Sweep) -> None:
    (noted,) = finished.shard_sets
    sweep = replace(finished, shard_sets=(noted, replace(noted, location="/other", hash="f" * 64)))
    facts = dict(protocol(sweep, read_records(sweep)))
    assert facts["Splits"] == "90 train / 10 val"
    assert facts["Manifest hash"] == f"{noted.location}: {noted.hash}; /other: {'f' * 64}"
