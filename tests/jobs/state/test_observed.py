"""Which of the observed trials are live, missing or unfinished, and which jobs Slurm holds for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs.trial import Submission, Sweep
from jobs.state import observed as module
from jobs.state.observed import Observed, glance, observe
from jobs.state.slurm_states import Answer
from jobs.state.trial_status import STATES, TrialStatus
from petseg.training.pruning import Hyperband
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", len(STATES))


@pytest.fixture
def observed(sweep: Sweep) -> Observed:
    """A trial in each state, each with a job of its own on Slurm."""
    return Observed(
        sweep,
        tuple(
            TrialStatus(trial, word, submission=Submission(trial.id, f"{number}", "slurm", ""), silence="timed out")
            for number, (trial, word) in enumerate(zip(sweep.trials, STATES, strict=True))
        ),
    )


def words(observed: Observed, ids: set[str]) -> list[str]:
    return [row.status for row in observed.rows if row.trial.id in ids]


def test_what_is_submitted_again_has_neither_a_result_nor_a_job(observed: Observed) -> None:
    missing = words(observed, {trial.id for trial in observed.missing})
    assert missing == ["interrupted", "failed", "planned", "pruned"]
    early = replace(observed, sweep=replace(observed.sweep, early_stopping=Hyperband(1)))
    assert words(early, {trial.id for trial in early.missing}) == ["interrupted", "failed", "planned"]


def test_what_is_live_may_be_ended_and_what_is_unfinished_is_reported(observed: Observed) -> None:
    assert [row.status for row in observed.live] == ["running", "stalled", "queued", "unknown"]
    assert [row.status for row in observed.unfinished] == [word for word in STATES if word not in ("done", "pruned")]


def test_slurm_holds_the_jobs_whose_state_it_says_each_of_them_once(observed: Observed) -> None:
    assert observed.slurm_jobs == ("0", "1", "2")
    running, stalled, queued, *_ = observed.rows
    shared = replace(stalled, submission=Submission(stalled.trial.id, "0", "slurm", ""))
    here = replace(queued, submission=Submission(queued.trial.id, "2", "local", ""))
    assert Observed(observed.sweep, (running, shared, here, replace(running, submission=None))).slurm_jobs == ("0",)


def test_some_of_the_trials_keep_the_answer_and_their_order(observed: Observed) -> None:
    ids = [observed.sweep.trials[number].id for number in (3, 0)]
    some = observed.of(ids)
    assert [row.status for row in some.rows] == ["running", "unknown"]
    assert (some.sweep, some.answer) == (observed.sweep, observed.answer)
    assert some.doubt.startswith("unknown: 1 of 2 trials")
    assert observed.of(ids[1:]).doubt == ""


def test_a_command_waits_for_slurm_and_a_display_does_not(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, answer = [TrialStatus(sweep.trials[0], "running")], Answer({}, 7.0)
    asked: list[object] = []
    monkeypatch.setattr(module, "trial_statuses", lambda sweep, patience_s: asked.append(patience_s) or rows)
    monkeypatch.setattr(module, "quick_trial_statuses", lambda sweep: (rows, answer))
    assert observe(sweep, 3.0) == observe(sweep) == Observed(sweep, tuple(rows))
    assert asked == [3.0, None]
    assert glance(sweep) == Observed(sweep, tuple(rows), answer)
