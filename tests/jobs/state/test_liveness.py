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
from jobs.state.liveness import (
    FEWEST_S,
    UNKNOWN_PACE_S,
    Planned,
    patience_s,
    planned,
    planned_epochs,
    read_last_row,
    silence_s,
    time_left_s,
)
from jobs.state.slurm_states import Answer
from jobs.state.table import epoch_text, state_text, to_document
from jobs.state.trial_status import trial_status
from petseg.run_folder.heartbeat import Heartbeat
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
    row = trial_status(trial, *on_slurm(trial, "RUNNING"))
    assert (row.status, row.epoch, row.epochs, row.dice) == ("running", 3, 10, 0.3)
    assert epoch_text(row) == "4/10 step 60/100"
    assert row.left_s == (1000 - 360) * 32 / 64
    assert state_text(row) == "running, 5 min left"
    beat(trial, 4, 60, now - 60)  # of an earlier attempt
    assert trial_status(trial, *on_slurm(trial, "RUNNING")).beat is None


def budgeted(trial: Trial, **train: float) -> None:
    path = trial.folder / "config.json"
    config = {"config": {"train": {"epochs": 100, "batch_size": 32, "accumulation_steps": 1, **train}}}
    path.write_text(json.dumps(config))
    liveness.planned.cache_clear()
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))


def test_a_budget_of_steps_is_what_is_left(trial: Trial) -> None:
    budgeted(trial, budget_steps=950)
    assert (
        epoch_text(trial_status(trial, *on_slurm(trial, "RUNNING"))) == ""
    )  # how many steps an epoch has is not known
    beat(trial, 1, 60, time.time() + 1)
    row = trial_status(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.epochs, row.left_s) == ("1/10 step 60/100", 10, (950 - 60) * 32 / 64)
    write_metrics([{"epoch": 1, "val/dice": 0.3, "perf/seconds": 60.0}], trial.folder)
    assert epoch_text(trial_status(trial, *on_slurm(trial, "PENDING"))) == "1/10"


def test_a_budget_of_minutes_is_what_is_left(sweep: Sweep, trial: Trial) -> None:
    budgeted(trial, budget_min=5.0)
    beat(trial, 1, 60, time.time() + 1)  # which still says what train.epochs would come to
    row = trial_status(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.left_s) == ("1/? step 60/100", 300 - 60 * 32 / 64)
    assert to_document(sweep, [row], Answer())["trials"][0]["epochs"] == 0
    beat(trial, 2, 60, time.time() + 1)  # ten epochs, of which as much as the clock allows
    row = trial_status(trial, *on_slurm(trial, "RUNNING"))
    assert (epoch_text(row), row.left_s) == ("2/10 step 60/100", 300 - 160 * 32 / 64)
    beat(trial, 10, 98, time.time() + 1)
    assert trial_status(trial, *on_slurm(trial, "RUNNING")).left_s == 0


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
    row = trial_status(trial, *on_slurm(trial, "RUNNING"))
    assert row.status == status
    assert ("no sign of life for" in row.note) == (status == "stalled")
    assert trial_status(trial, *on_slurm(trial, "PENDING")).status == "queued"


def test_the_last_row_is_found_before_one_that_was_cut_short(tmp_path: Path) -> None:
    assert read_last_row(tmp_path) == {}
    write_metrics([{"epoch": e, **{f"x{i}": 0.5 for i in range(80)}} for e in range(50)], tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 50, "x')
    assert read_last_row(tmp_path)["epoch"] == 49


def test_a_link_in_place_of_the_metrics_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"epoch": 3}\n')
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    assert read_last_row(tmp_path) == {}
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").write_text("{}\nno row\n")
    assert read_last_row(tmp_path) == {}


@pytest.mark.parametrize(
    ("config", "plan"),
    [
        ({"epochs": 9, "batch_size": 4}, Planned(9, 4)),
        ({"epochs": 9, "batch_size": 4, "budget_steps": 50}, Planned(0, 4, 50)),
        ({"epochs": 9, "batch_size": 4, "budget_min": 1.5}, Planned(0, 4, 0, 90.0)),
        ({"batch_size": 4, "budget_steps": 50, "budget_min": 2}, Planned(0, 4, 50, 120.0)),
        ({"epochs": 9}, Planned()),
        ({"epochs": "many", "batch_size": 4}, Planned()),
        ({"epochs": None, "batch_size": 4}, Planned()),
    ],
)
def test_what_is_planned_is_read_from_the_config(tmp_path: Path, config: dict[str, object], plan: Planned) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": {"train": config}}))
    assert planned(tmp_path) == plan
    assert planned_epochs(tmp_path) == plan.epochs


def beating(epoch: int, step: int, images_per_s: float = 8.0) -> Heartbeat:
    """Of ten epochs of 100 steps; with batches of 4 a step takes half a second."""
    return Heartbeat(0.0, epoch, 10, step, 100, images_per_s)


@pytest.mark.parametrize(
    ("beat", "plan", "left_s"),
    [
        (beating(2, 30), Planned(10, 4), 870 / 2),
        (beating(10, 100), Planned(10, 4), 0.0),
        (beating(2, 30, 0.0), Planned(10, 4), None),
        (beating(2, 30, 0.5), Planned(10, 4), 870 * 8),
        (beating(2, 30), Planned(), None),
        (beating(2, 30), Planned(0, 4, 140), 10 / 2),
        (beating(2, 30), Planned(0, 4, 120), 0.0),  # never less
        (beating(1, 30), Planned(0, 4, 0, 1000.0), 985.0),  # how many epochs that makes is not known yet
        (beating(2, 30), Planned(0, 4, 0, 1000.0), 435.0),
        (beating(2, 30), Planned(0, 4, 0, 100.0), 35.0),
        (beating(2, 30), Planned(0, 4, 0, 64.0), 0.0),
        (beating(3, 30), Planned(0, 4, 240, 1000.0), 5.0),
    ],
)
def test_the_time_left_is_that_of_the_steps_or_of_the_clock(
    beat: Heartbeat, plan: Planned, left_s: float | None
) -> None:
    assert time_left_s(beat, plan) == left_s


@pytest.mark.parametrize("latest", ["began", "beat", "heartbeat.json", "metrics.jsonl", "nothing"])
def test_silence_counts_from_the_latest_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latest: str) -> None:
    monkeypatch.setattr(liveness.time, "time", lambda: 10_000.0)
    for name in ("heartbeat.json", "metrics.jsonl"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 9_000.0 if latest == name else 1_000.0))
    sign = Heartbeat(9_000.0 if latest == "beat" else 1_000.0, 1, 1, 1, 1, 1.0)
    assert silence_s(tmp_path, sign, 9_000.0 if latest == "began" else 0.0) == (
        9_000.0 if latest == "nothing" else 1_000
    )


def test_without_files_silence_counts_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness.time, "time", lambda: 10_000.0)
    assert silence_s(tmp_path, None, 9_990.0) == 10.0
    assert silence_s(tmp_path, None, 0.0) == 10_000.0


@pytest.mark.parametrize(
    ("images_per_s", "row", "patience"),
    [
        (None, {}, UNKNOWN_PACE_S),
        (0.0, {}, UNKNOWN_PACE_S),
        (0.5, {}, 5 * 100 * 4 / 0.5),
        (64.0, {}, FEWEST_S),
        (0.5, {"perf/seconds": 130.0}, 650.0),  # what was measured counts
        (None, {"perf/seconds": 130.0}, 650.0),
        (None, {"perf/seconds": 100.0}, FEWEST_S),
    ],
)
def test_patience_is_five_epochs_or_ten_minutes(
    tmp_path: Path, images_per_s: float | None, row: dict[str, float], patience: float
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": {"train": {"epochs": 9, "batch_size": 4}}}))
    beat = None if images_per_s is None else beating(2, 30, images_per_s)
    assert patience_s(tmp_path, beat, row) == patience
