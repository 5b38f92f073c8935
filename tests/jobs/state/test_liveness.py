"""Signs of life: how far a trial is, what is left of its budget, and when it counts as stalled."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from jobs.runs.trial import Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state import liveness
from jobs.state.liveness import read_last_row
from jobs.state.slurm_states import Answer
from jobs.state.table import epoch_text, state_text, to_document
from jobs.state.trial_status import standing
from petseg.run_folder.layout import write_metrics
from tests.jobs.written_trials import beat, on_slurm, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 4)


@pytest.fixture
def trial(sweep: Sweep) -> Trial:
    return sweep.trials[3]


def test_a_running_trial_shows_its_step_and_the_time_left(trial: Trial) -> None:
    now = time.time()
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))
    beat(trial, 4, 60, now + 1)
    write_metrics([{"epoch": e, "val/dice": e / 10, "perf/seconds": 60.0} for e in (1, 2, 3)], trial.folder)
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (row.status, row.epoch, row.epochs, row.dice) == ("running", 3, 10, 0.3)
    assert epoch_text(row) == "4/10 step 60/100"
    assert row.left_s == (1000 - 360) * 32 / 64
    assert state_text(row) == "running, 5 min left"
    beat(trial, 4, 60, now - 60)  # of an earlier life
    assert standing(trial, *on_slurm(trial, "RUNNING")).beat is None


def budgeted(trial: Trial, **train: float) -> None:
    path = trial.folder / "config.json"
    config = {"config": {"train": {"epochs": 100, "batch_size": 32, "accumulation_steps": 1, **train}}}
    path.write_text(json.dumps(config))
    liveness.planned.cache_clear()
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))


def test_a_budget_of_steps_is_what_is_left(trial: Trial) -> None:
    budgeted(trial, budget_steps=950)
    assert epoch_text(standing(trial, *on_slurm(trial, "RUNNING"))) == ""  # how many steps an epoch has is not known
    beat(trial, 1, 60, time.time() + 1)
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.epochs, row.left_s) == ("1/10 step 60/100", 10, (950 - 60) * 32 / 64)
    write_metrics([{"epoch": 1, "val/dice": 0.3, "perf/seconds": 60.0}], trial.folder)
    assert epoch_text(standing(trial, *on_slurm(trial, "PENDING"))) == "1/10"


def test_a_budget_of_minutes_is_what_is_left(sweep: Sweep, trial: Trial) -> None:
    budgeted(trial, budget_min=5.0)
    beat(trial, 1, 60, time.time() + 1)  # which still says what train.epochs would come to
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.left_s) == ("1/? step 60/100", 300 - 60 * 32 / 64)
    assert to_document(sweep, [row], Answer())["trials"][0]["epochs"] == 0
    beat(trial, 2, 60, time.time() + 1)  # ten epochs, of which as much as the clock allows
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.left_s) == ("2/10 step 60/100", 300 - 160 * 32 / 64)
    beat(trial, 10, 98, time.time() + 1)
    assert standing(trial, *on_slurm(trial, "RUNNING")).left_s == 0


@pytest.mark.parametrize(
    ("silent_s", "epoch_s", "status"),
    [(500, 1.0, "running"), (700, 1.0, "stalled"), (700, 200.0, "running"), (1100, 200.0, "stalled")],
)
def test_a_trial_without_a_sign_of_life_is_stalled(trial: Trial, silent_s: float, epoch_s: float, status: str) -> None:
    then = time.time() - silent_s
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))
    path = trial.folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": then - 50}))
    beat(trial, 4, 60, then)
    write_metrics([{"epoch": 3, "perf/seconds": epoch_s}], trial.folder)
    os.utime(trial.folder / "metrics.jsonl", (then, then))
    row = standing(trial, *on_slurm(trial, "RUNNING"))
    assert row.status == status
    assert ("no sign of life for" in row.note) == (status == "stalled")
    assert standing(trial, *on_slurm(trial, "PENDING")).status == "queued"


def test_the_last_row_is_found_before_one_that_was_cut_short(tmp_path: Path) -> None:
    assert read_last_row(tmp_path) == {}
    write_metrics([{"epoch": e, **{f"x{i}": 0.5 for i in range(80)}} for e in range(50)], tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 50, "x')
    assert read_last_row(tmp_path)["epoch"] == 49
