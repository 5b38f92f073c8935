"""Rows of trials that share a job, and of those whose job is held, refused or over."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.runs.trial import Submission, Sweep, Trial
from jobs.state.trial_status import rows_of, trial_status
from petseg.run_folder.layout import write_metrics
from shards.cause import Cause
from slurm.cluster import JobState
from tests.jobs.written_trials import beat, on_slurm, state_of, sweep_of

RUNNING = JobState("RUNNING", "", "node1", "squeue")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 6)


@pytest.fixture
def trial(sweep: Sweep) -> Trial:
    return sweep.trials[3]


def test_a_job_that_runs_two_at_once_has_two_that_run_and_those_before_them_wait(sweep: Sweep) -> None:
    """Whatever is over in it stays so; the trial of another job is no part of the count."""
    given = {trial.id: Submission(trial.id, "1", "slurm", "x/1_0_log.out") for trial in sweep.trials[:5]}
    given[sweep.trials[5].id] = Submission(sweep.trials[5].id, "2", "slurm", "")
    now = time.time()
    for number, after in enumerate((1, 3, 2)):
        state_of(sweep.trials[number], now + after, status="running", job_id="1", at_once=2, slot=1)
        beat(sweep.trials[number], 3, 50, now + 9)
    state_of(sweep.trials[3], now + 9, status="failed", job_id="1")
    state_of(sweep.trials[5], now - 9, status="running", job_id="2")
    rows = rows_of(sweep, given, {"1": RUNNING, "2": RUNNING})
    assert [row.status for row in rows] == ["queued", "running", "running", "failed", "queued", "running"]
    assert (rows[0].note, rows[0].beat, rows[0].left_s) == ("waits for its turn in its job", None, None)
    assert rows[1].beat is not None


def test_the_host_and_the_epoch_of_what_is_over_stay(trial: Trial) -> None:
    state_of(trial, status="failed", job_id="12_0", host="node7", cause=Cause.NAN, error="a NaN", restarts=1)
    write_metrics([{"epoch": 6, "val/dice": 0.5}], trial.folder)
    row = trial_status(trial, *on_slurm(trial, "FAILED"))
    assert (row.host, row.epoch, row.epochs, row.dice, row.restarts) == ("node7", 6, 10, 0.5, 1)
    assert (row.cause, row.log, row.beat) == ("nan", "x.out", None)


def test_a_job_that_was_refused_before_it_began_says_what_slurm_said(trial: Trial) -> None:
    row = trial_status(trial, *on_slurm(trial, "MISSING"), shared=True)
    assert (row.status, row.cause) == ("interrupted", "never_began")
    assert not row.note.startswith("it never began, and Slurm")


@pytest.mark.parametrize("word", ["SUSPENDED", "STOPPED"])
def test_a_trial_that_slurm_holds_is_not_stalled(trial: Trial, word: str) -> None:
    state_of(trial, time.time() - 9000, status="running", host="node1", job_id="12_0")
    for name in ("heartbeat.json", "metrics.jsonl"):
        (trial.folder / name).touch()
        os.utime(trial.folder / name, (0, 0))
    row = trial_status(trial, *on_slurm(trial, word))
    assert (row.status, row.note) == ("running", f"{word.lower()} by Slurm")
    assert trial_status(trial, *on_slurm(trial, "RUNNING")).status == "stalled"


def test_a_submission_that_was_cut_off_is_planned(trial: Trial) -> None:
    row = trial_status(trial, Submission(trial.id, "", "slurm", ""), {})
    assert (row.status, row.note) == ("planned", "submission was cut off: run the sweep again")


def test_a_submission_that_names_no_log_hides_no_trial(sweep: Sweep) -> None:
    """As a damaged folder, or a stranger's, may have it."""
    trial = sweep.trials[0]
    state_of(trial, status="running", job_id="1", slot=2, at_once=2)
    row = trial_status(trial, Submission(trial.id, "1", "slurm", ""), {"1": RUNNING})
    assert (row.status, row.log) == ("running", "")
    over = trial_status(trial, Submission(trial.id, "1", "slurm", ""), {"1": JobState("TIMEOUT", "", "", "squeue")})
    assert (over.status, over.cause, over.log) == ("interrupted", "timeout", "")
