"""The section that lists the trials."""

from jobs.reporting.sections.trials import trial_row
from jobs.reporting.statistics.records import read_records
from jobs.runs.trial import Sweep
from tests.jobs.reporting.short_sweep import finish


def test_a_trial_shows_the_command_that_reproduces_it(sweep: Sweep) -> None:
    trial = sweep.trials[0]
    finish(trial, 0.8)
    record = read_records(sweep)[0]
    row = trial_row(record, sweep.manifest_hash)
    facts = dict(row.facts)
    assert facts["data"] == sweep.manifest_hash
    assert facts["config"] == f"{trial.id}/config.json"
    assert (facts["processes"], facts["host"], facts["device"]) == ("2", "node1", "cpu, 1 thread")
    assert row.command.startswith("python petseg/train.py")
    (trial.folder / "lives.json").write_text('[{"number": 1')
    assert trial_row(record, sweep.manifest_hash).attempts == ()
