"""Decides from one observation which trials of a sweep are submitted."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.runs.trial import Sweep, Trial
from jobs.state.observed import Observed
from jobs.state.trial_status import ENDED, LIVE, TrialStatus


@dataclass(frozen=True)
class Decision:
    """The trials that are to be submitted, and those that are left alone; the status of each is the reason."""

    submit: tuple[TrialStatus, ...]
    leave: tuple[TrialStatus, ...]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials that are to be submitted."""
        return tuple(row.trial for row in self.submit)


def decide(observed: Observed) -> Decision:
    """Submit the trials that have neither a result nor a live job."""
    submit = tuple(row for row in observed.rows if would_run(row, observed.sweep))
    return Decision(submit, tuple(row for row in observed.rows if row not in submit))


def would_run(row: TrialStatus, sweep: Sweep) -> bool:
    """Whether a trial has neither a result nor a live job; a pruned one resumes without early stopping."""
    return row.status not in (*ENDED, *LIVE) or (row.status == "pruned" and sweep.early_stopping is None)
