"""What is seen of a trial on this machine: how far it is, how long it takes, and how it ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch import local_progress
from jobs.launch.local_progress import MAX_ROWS, LocalProgress, RunningTrial, _began, _idle, _say, describe, look_at
from jobs.runs.trial import Trial
from jobs.runs.trial_state import TrialState
from petseg.run_folder.attempts import Attempt
from petseg.run_folder.layout import Pruned, save_pruned, write_metrics
from tests.jobs.written_trials import beat, finish, sweep_of


@pytest.fixture
def trials(tmp_path: Path) -> tuple[Trial, ...]:
    return sweep_of(tmp_path / "lab", 6).trials


@pytest.mark.parametrize(
    ("values", "text", "cells"),
    [
        ({}, "epoch 0/?, starting", ("epoch 0/?", "", "starting")),
        ({"is_saved": True, "epoch": 2, "epochs": 9}, "epoch 2/9, saved", ("epoch 2/9", "", "saved")),
        ({"left_s": 0.0, "share": 0.9}, "epoch 0/?, 0 s left", ("epoch 0/?", "", "0 s left")),
        ({"dice": 0.0, "left_s": 120.0}, "epoch 0/?, val Dice 0.0000, 2 min left",
         ("epoch 0/?", "Dice 0.0000", "2 min left")),
        ({"share": 1.0, "left_s": 3.0, "is_saved": True}, "epoch 0/?, finishing", ("epoch 0/?", "", "finishing")),
    ],
)  # fmt: skip
def test_a_line_says_what_is_known(
    trials: tuple[Trial, ...], values: dict[str, Any], text: str, cells: tuple[str, str, str]
) -> None:
    look = RunningTrial(trials[0], **values)
    assert (look.text, look.cells) == (f"unet seed=0: {text}", cells)


@pytest.mark.parametrize(
    ("values", "whole_s"),
    [
        ({"ran_s": 50.0}, 0.0),
        ({"left_s": 30.0, "ran_s": 5.0, "share": 0.25}, 40.0),  # most of it in an earlier attempt
        ({"left_s": 30.0, "ran_s": 50.0, "share": 0.25}, 80.0),
        ({"left_s": 0.0, "ran_s": 50.0, "share": 1.0}, 50.0),
    ],
)
def test_the_whole_of_a_trial_takes_what_it_ran_and_what_is_left(
    trials: tuple[Trial, ...], values: dict[str, float], whole_s: float
) -> None:
    assert RunningTrial(trials[0], **values).whole_s == whole_s  # type: ignore[arg-type]


def test_a_look_reads_the_heartbeat_of_this_start(trials: tuple[Trial, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trials[0]
    monkeypatch.setattr(local_progress, "time", SimpleNamespace(time=lambda: 1000.0))
    assert look_at(trial, 900.0) == RunningTrial(trial, 0, 10, 0.0, None)
    write_metrics([{"epoch": 4, "val/dice": 0.5}], trial.folder)
    beat(trial, 5, 20, 899.0)
    assert look_at(trial, 900.0) == RunningTrial(trial, 4, 10, 0.4, 0.5)  # of an earlier attempt
    beat(trial, 5, 20, 900.0)
    assert look_at(trial, 900.0) == RunningTrial(trial, 4, 10, 0.42, 0.5, 580 * 32 / 64, 100.0)
    beat(trial, 11, 20, 901.0)
    assert look_at(trial, 900.0).share == 1.0
    assert _idle(trial, True) == RunningTrial(trial, 4, 10, 0.4, 0.5, is_saved=True)


def test_a_trial_without_a_known_length_has_no_share(trials: tuple[Trial, ...]) -> None:
    trial = trials[0]
    (trial.folder / "config.json").write_text("{}")
    write_metrics([{"epoch": 4}], trial.folder)
    assert _idle(trial, False) == look_at(trial, 0.0) == RunningTrial(trial, 4, 0, 0.0, None)
    nothing = {"time": 9.0, "epoch": 1, "epochs": 0, "step": 0, "steps_per_epoch": 0, "images_per_s": 0.0}
    (trial.folder / "heartbeat.json").write_text(json.dumps(nothing))
    assert look_at(trial, 0.0).share == 0.0


def test_how_a_trial_stands_is_told_in_a_line(trials: tuple[Trial, ...]) -> None:
    done, pruned, failed, silent, other, damaged = trials
    finish(done)
    save_pruned(Pruned(pruned.id, 4, 10, 3, 0.7, 0.6, 0.65, 16, "node9", 60.0), pruned.folder)
    failed.write_state(TrialState("failed", job_id="7", error="KeyError: x"))
    silent.write_state(TrialState("", job_id="7"))
    other.write_state(TrialState("failed", job_id="6", error="KeyError: x"))
    (damaged.folder / "result.json").write_text("{}")
    told = [describe(trial, "7") for trial in trials]
    assert told[:5] == [
        "done, val Dice 0.9000", "pruned after epoch 4 of 10, best val Dice 0.7000", "failed KeyError: x", "ended",
        "not begun: its job ended before its turn",
    ]  # fmt: skip
    assert "result.json" in told[5]


def test_a_trial_began_with_its_state_or_with_its_last_start(trials: tuple[Trial, ...]) -> None:
    trial = trials[0]
    assert _began(trial, TrialState("running", time=7.0)) == 7.0
    assert _began(trial, TrialState("done", time=7.0)) == 0.0
    starts = [Attempt(number, "n", "1", "", 0, when) for number, when in ((1, 3.0), (2, 5.0))]
    (trial.folder / "lives.json").write_text(json.dumps([vars(start) for start in starts]))
    assert _began(trial, TrialState("done", time=7.0)) == 5.0
    (trial.folder / "lives.json").write_text("[")
    assert _began(trial, TrialState("done", time=7.0)) == 0.0


def test_no_more_trials_run_than_there_are_slots(trials: tuple[Trial, ...]) -> None:
    """A job of six trials has two slots: the third trial says that it runs, and those behind it wait."""
    progress = LocalProgress(trials, 2)
    progress.started(trials, "7", "1 of 1")
    assert [look.trial for look in progress.look()] == list(trials[:2])
    trials[2].write_state(TrialState("running", job_id="7"))
    assert [look.trial.id for look in progress.look()] == [trials[0].id, trials[1].id]
    for trial in trials[:2]:
        trial.write_state(TrialState("failed", job_id="7"))
    assert [look.trial for look in progress.look()] == list(trials[2:4])


def test_the_time_left_is_that_of_the_slowest_slot(trials: tuple[Trial, ...]) -> None:
    a, b, *_ = trials
    progress = LocalProgress(trials, 3, ran={a.id: 40.0, b.id: 0.0})  # the second never began
    assert progress.left_s([]) == 80.0  # four wait, for three slots
    assert progress.left_s([RunningTrial(trials[2]), RunningTrial(trials[3], left_s=10.0)]) == 50.0
    assert progress.summary([RunningTrial(trials[2])]) == ("2 of 6 trials have ended, 1 run, 3 wait; about 80 s left")
    assert LocalProgress(trials[:1], 1, ran={a.id: 3.0}).left_s([]) == 0.0


def test_an_end_that_is_repaired_is_told_again_and_none_twice(
    trials: tuple[Trial, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    progress = LocalProgress(trials[:1], 1)
    progress.started(trials[:1], "7", "1 of 6")
    before = time.time()
    trials[0].write_state(TrialState("failed", job_id="7", error="no GPU"))
    progress.look()
    progress.ended(trials[:1])
    finish(trials[0])
    progress.ended(trials[:1])
    name = f"{trials[0].id} unet seed=0"
    assert caplog.messages == [
        f"{name}: started as job 7 (1 of 6)", f"{name}: failed no GPU", f"{name}: done, val Dice 0.9000",
    ]  # fmt: skip
    assert 0.0 <= progress.ran[trials[0].id] <= time.time() - before + 1


def test_lines_are_said_once_and_of_many_trials_the_first(
    trials: tuple[Trial, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    progress = LocalProgress(trials, 1)
    running = [RunningTrial(trials[0])] * (MAX_ROWS + 1)
    said = _say(progress, running, [])
    assert said == caplog.messages == [progress.summary(running), *[running[0].text] * MAX_ROWS]
    caplog.clear()
    assert _say(progress, running, said) == said
    assert caplog.messages == []
