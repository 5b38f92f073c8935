"""The section about overfitting: where the gap between training and validation opens."""

import pytest

from jobs.reporting.sections.gap import measure_gaps
from jobs.runs.trial import Sweep
from tests.jobs.reporting.short_sweep import finish, groups_of


def test_gap_opens_where_val_loss_is_lowest(sweep: Sweep) -> None:
    for trial in sweep.trials:
        finish(trial, 0.8)
    _, groups, _ = groups_of(sweep)
    table = measure_gaps(groups)
    assert (len(table.rows), table.left_out) == (8, 0)
    gap = table.rows[0]
    assert (gap.best.epoch, gap.last.epoch, gap.opens) == (3, 3, 2)
    assert gap.rise == pytest.approx(0.05)
    assert gap.last.dice_gap == pytest.approx(0.02)
    assert gap.last.loss_gap == pytest.approx(0.25)
