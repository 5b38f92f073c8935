"""One look at the trials of a sweep, from which every command begins: their folders, their processes, and Slurm."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from jobs.runs.trial import Sweep, Trial
from jobs.state.slurm_states import Answer
from jobs.state.trial_status import ENDED, LIVE, TrialStatus, quick_trial_statuses, trial_statuses, unknown_line


@dataclass(frozen=True)
class Observed:
    """The trials of a sweep as they were found, all of them or some."""

    sweep: Sweep
    rows: tuple[TrialStatus, ...]
    answer: Answer = field(default_factory=Answer)  # Slurm's, which may be some seconds old after `glance`

    def of(self, ids: Collection[str]) -> Observed:
        """This observation, restricted to some trials."""
        return replace(self, rows=tuple(row for row in self.rows if row.trial.id in ids))

    @property
    def live(self) -> tuple[TrialStatus, ...]:
        """The trials that a job holds, or may hold."""
        return tuple(row for row in self.rows if row.status in LIVE)

    @property
    def missing(self) -> tuple[Trial, ...]:
        """The trials that have neither a result nor a live job; pruned ones too, once the sweep stops none early."""
        resumed = ("pruned",) if self.sweep.early_stopping is None else ()
        return tuple(row.trial for row in self.rows if row.status in resumed or row.status not in (*ENDED, *LIVE))

    @property
    def slurm_jobs(self) -> tuple[str, ...]:
        """The jobs that Slurm holds for these trials; without those of which it does not say how they stand."""
        submissions = (row.submission for row in self.live if row.status != "unknown")
        return tuple(dict.fromkeys(one.job_id for one in submissions if one and one.cluster == "slurm"))

    @property
    def unfinished(self) -> tuple[TrialStatus, ...]:
        """The trials that have neither a result nor been stopped early."""
        return tuple(row for row in self.rows if row.status not in ENDED)

    @property
    def doubt(self) -> str:
        """What to tell the user where Slurm does not say how jobs stand; empty if all is known."""
        return unknown_line(self.rows)


def observe(sweep: Sweep, patience_s: float | None = None) -> Observed:
    """Look at all trials, with one question to Slurm.

    patience_s: how long Slurm may take to answer; by default it is asked again while it is busy
    """
    return Observed(sweep, tuple(trial_statuses(sweep, patience_s)))


def glance(sweep: Sweep) -> Observed:
    """Look at all trials for a display: Slurm's answer may be some seconds old, and this does not wait long for one."""
    rows, answer = quick_trial_statuses(sweep)
    return Observed(sweep, tuple(rows), answer)
