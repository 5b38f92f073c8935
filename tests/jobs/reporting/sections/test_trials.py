"""The section that lists the trials."""

from jobs.reporting.sections.trials import trial_row
from jobs.reporting.statistics.records import read_records
from jobs.runs.trial import Sweep
from petseg.run_folder.layout import write_metrics
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


def test_the_best_dice_and_the_lowest_loss_are_shown_with_their_epochs(sweep: Sweep) -> None:
    """A trial without a result shows those of its rows so far; a finished one shows what its result says."""
    trial, done, planned = sweep.trials[:3]
    rows = [(1, 0.6, 0.5), (2, 0.8, 0.3), (3, float("nan"), 0.2), (4, 0.7, 0.4)]
    write_metrics([{"epoch": e, "step": e, "val/dice": d, "val/loss": v} for e, d, v in rows], trial.folder)
    finish(done, 0.9)
    shown = {record.id: trial_row(record, "h") for record in read_records(sweep)}
    assert (shown[trial.id].best_dice, shown[trial.id].lowest_loss) == ((0.8, 2), (0.2, 3))
    assert (shown[done.id].best_dice, shown[done.id].lowest_loss) == ((0.9, 3), (0.4, 2))
    assert (shown[planned.id].best_dice, shown[planned.id].lowest_loss) == (None, None)
