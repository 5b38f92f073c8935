"""What a sweep on this machine shows while it runs, and what it leaves behind when it is stopped."""

from __future__ import annotations

import _thread
import io
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from jobs.launch import local_progress
from jobs.launch.local_progress import MAX_ROWS, LocalProgress, RunningTrial
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Trial
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import trial_statuses
from jobs.sweep import main
from petseg.run_folder.attempts import begin_attempt
from petseg.run_folder.layout import write_metrics
from shards.command import CANCELLED, run_command
from tests.jobs.written_trials import beat, finish, sweep_of


def test_each_trial_that_runs_is_shown_with_what_it_has_come_to(tmp_path: Path) -> None:
    """One of six has ended, one is in its sixth of ten epochs, one has only begun."""
    trials = sweep_of(tmp_path / "lab", 6).trials
    progress = LocalProgress(trials, 2)
    progress.started(trials[:1], "1", "1 of 6")
    finish(trials[0])
    trials[0].write_state(TrialState("done", job_id="1"))
    progress.ended(trials[:1])
    progress.started(trials[1:2], "2", "2 of 6")
    progress.started(trials[2:3], "3", "3 of 6")
    trials[1].write_state(TrialState("running", job_id="2"))
    write_metrics([{"epoch": 5, "val/dice": 0.7123}], trials[1].folder)
    beat(trials[1], 6, 50, time.time() + 1)  # 450 steps of 32 pictures are left, at 64 a second
    known, new = progress.look()
    assert (known.epoch, known.epochs, known.share, known.dice) == (5, 10, 0.55, 0.7123)
    assert known.left_s == pytest.approx(225)
    assert known.text == "unet seed=1: epoch 5/10, val Dice 0.7123, 4 min left"
    assert new == RunningTrial(trials[2], epochs=10)
    trials[2].write_state(TrialState("interrupted", job_id="3"))
    assert progress.look()[1].time == "saved"
    assert progress.summary([known, new]).startswith("1 of 6 trials have ended, 2 run, 3 wait; about ")


def test_time_left_counts_the_trials_that_wait(tmp_path: Path) -> None:
    """Two at a time; one has 30 s left, one 60 s, and each of three more takes 100 s: 30 + 100 + 100 > 60 + 100."""
    trials = sweep_of(tmp_path / "lab", 6).trials
    progress = LocalProgress(trials, 2, ran={trials[0].id: 100.0})
    running = [RunningTrial(trials[1], left_s=30.0), RunningTrial(trials[2], left_s=60.0)]
    assert progress.left_s(running) == pytest.approx(230)
    unknown = LocalProgress(trials, 2)
    assert unknown.left_s([RunningTrial(trials[0])]) is None
    assert "is not known yet" in unknown.summary([RunningTrial(trials[0])])
    by_pace = LocalProgress(trials[:3], 1)  # a quarter is done and 30 s are left: 40 s each
    assert by_pace.left_s([RunningTrial(trials[0], share=0.25, left_s=30.0)]) == pytest.approx(110)


def test_a_trial_that_has_trained_is_finishing_and_those_behind_it_take_as_long(tmp_path: Path) -> None:
    """It measures test, which its training's time left does not count."""
    trials = sweep_of(tmp_path / "lab", 3).trials
    progress = LocalProgress(trials, 1, began={trials[0].id: time.time() - 100})
    trained = RunningTrial(trials[0], epoch=10, epochs=10, share=1.0, dice=0.7, left_s=0.0)
    assert trained.text == "unet seed=0: epoch 10/10, val Dice 0.7000, finishing"
    left_s = progress.left_s([trained])
    assert left_s is not None
    assert left_s >= 200


def test_the_pace_is_that_of_a_whole_trial_also_at_its_end(tmp_path: Path) -> None:
    """Its last step is done after 50 s, and two more wait."""
    trials = sweep_of(tmp_path / "lab", 3).trials
    last_step = RunningTrial(trials[0], share=1.0, left_s=0.0, ran_s=50.0)
    assert LocalProgress(trials, 1).left_s([last_step]) == pytest.approx(100)


def began_ago(progress: LocalProgress, seconds: float) -> None:
    progress.began = {identifier: began - seconds for identifier, began in progress.began.items()}


def test_trials_that_share_a_job_are_reported_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A job of four, which began a minute ago: one ends, one fails, one is running when the job ends."""
    caplog.set_level(logging.INFO)
    trials = sweep_of(tmp_path / "lab", 4).trials
    progress = LocalProgress(trials, 1)
    trials[3].write_state(TrialState("failed", error="of an earlier job", job_id="8"))
    progress.started(trials, "9", "1 of 1")
    began_ago(progress, 60)
    assert [look.trial for look in progress.look()] == [trials[0]]
    assert caplog.messages == ["job 9 (1 of 1) started with 4 trials"]
    caplog.clear()
    trials[0].write_state(TrialState("running", job_id="9"))
    progress.look()
    finish(trials[0])
    trials[0].write_state(TrialState("done", job_id="9"))
    trials[1].write_state(TrialState("running", job_id="9"))
    assert [look.trial for look in progress.look()] == [trials[1]]
    assert caplog.messages == [
        f"{trials[0].id} unet seed=0: started in job 9 (1 of 4)",
        f"{trials[0].id} unet seed=0: done, val Dice 0.9000",
        f"{trials[1].id} unet seed=1: started in job 9 (2 of 4)",
    ]
    assert progress.summary(progress.look()).startswith("1 of 4 trials have ended, 1 run, 2 wait")
    assert progress.ran[trials[0].id] < 30  # not since its job began
    caplog.clear()
    trials[1].write_state(TrialState("failed", error="KeyError: x", job_id="9"))
    trials[2].write_state(TrialState("running", job_id="9"))
    progress.look()
    progress.ended(trials)
    assert caplog.messages == [
        f"{trials[1].id} unet seed=1: failed KeyError: x",
        f"{trials[2].id} unet seed=2: started in job 9 (3 of 4)",
        f"{trials[2].id} unet seed=2: running",
        f"{trials[3].id} unet seed=3: not begun: its job ended before its turn",
    ]
    assert progress.look() == []


def test_a_trial_that_began_and_ended_between_two_looks_is_reported_as_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trials = sweep_of(tmp_path / "lab", 2).trials
    progress = LocalProgress(trials, 1)
    progress.started(trials, "9", "1 of 1")
    began_ago(progress, 60)
    begin_attempt(trials[0].folder, 0)
    trials[0].write_state(TrialState("pruned", job_id="9"))
    progress.look()
    assert [message.split(": ")[1][:7] for message in caplog.messages[1:]] == ["started", "pruned"]
    assert progress.ran[trials[0].id] < 30


def test_a_damaged_folder_does_not_end_the_launcher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trials = sweep_of(tmp_path / "lab", 2).trials
    progress = LocalProgress(trials, 1)
    progress.started(trials, "9", "1 of 1")
    (trials[0].folder / "lives.json").write_text('[{"number": 1}]')
    (trials[0].folder / "result.json").write_text("{}")
    trials[0].write_state(TrialState("failed", error="TypeError: x", job_id="9"))
    progress.ended(trials)
    assert "another version" in caplog.text
    assert "seed=1: not begun" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_a_launcher_reports_each_trial_of_a_job_while_that_goes_on(
    tiny_sweep: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    monkeypatch.setattr(local_progress, "LOOK_EVERY_S", 0.05)
    caplog.set_level(logging.INFO)
    flags = [*tiny_sweep, "--cluster", cluster, "--trials-per-job", "2", "--axis", "model.arch=unet"]
    assert run_command(main, [*flags, "--axis", "train.seed=0,1"]) == 0
    reports = [
        r.getMessage() for r in caplog.records if r.name == "jobs.launch.local_progress" and "seed=" in r.getMessage()
    ]
    words = [text.partition(" seed=")[2][:10] for text in reports if "epoch" not in text]
    assert words == ["0: started", "0: done, v", "1: started", "1: done, v"]


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    trials = sweep_of(tmp_path / "lab", 3).trials
    progress = LocalProgress(trials, 2)
    screen = io.StringIO()
    looks = [RunningTrial(trials[0], 3, 10, 0.35, 0.7123, 3600.0), RunningTrial(trials[1])]
    Console(file=screen, width=80, force_terminal=True, color_system=None).print(progress.render(looks, 80))
    lines = screen.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert "epoch 3/10" in lines[0]
    assert "Dice 0.7123  60 min left" in lines[0]
    assert "starting" in lines[1]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_only_a_name_and_the_bar_are_cut_short_on_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    (trial,) = sweep_of(tmp_path / "lab", 1).trials
    trial = replace(trial, axes={"model.arch": "resnet34_unet", "augment.policy": "elastic_crop", "train.seed": 0})
    screen = io.StringIO()
    table = LocalProgress([trial], 1).render([RunningTrial(trial, 15, 100, 0.15, 0.5686, 5400.0)], width)
    Console(file=screen, width=width, force_terminal=True, color_system=None).print(table)
    line = screen.getvalue().splitlines()[0]
    assert len(line) <= width
    names = {60: "resnet3…", 80: "resnet34_unet elastic_crop …", 120: "resnet34_unet elastic_crop seed=0"}
    assert line.startswith(names[width])
    assert line.endswith("epoch 15/100  Dice 0.5686  1 h 30 min left")


def shown(trials: Sequence[Trial], width: int) -> list[str]:
    """The lines for trials that all run."""
    looks = [RunningTrial(trial, 3, 10, 0.35, 0.7123, 60.0) for trial in trials]
    screen = io.StringIO()
    table = LocalProgress(trials, len(trials)).render(looks, width)
    Console(file=screen, width=width, force_terminal=True, color_system=None).print(table)
    return screen.getvalue().splitlines()


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (MAX_ROWS, MAX_ROWS), (MAX_ROWS + 4, MAX_ROWS)])
def test_of_many_trials_the_first_have_lines_and_all_are_counted(tmp_path: Path, count: int, rows: int) -> None:
    lines = shown(sweep_of(tmp_path / "lab", count).trials, 80)
    assert len(lines) == rows + 1
    assert f"0 of {count} trials have ended, {count} run, 0 wait" in lines[-1]


@pytest.mark.parametrize("first", [True, False])
def test_no_name_is_cut_where_the_longest_one_has_room(tmp_path: Path, first: bool) -> None:
    short, long = sweep_of(tmp_path / "lab", 2).trials
    long = replace(long, axes={"model.arch": "resnet34_unet", "augment.policy": "elastic", "train.seed": 0})
    lines = shown([long, short] if first else [short, long], 76)
    assert lines[0 if first else 1].startswith("resnet34_unet elastic seed=0 ")
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    ("slots", "waiting", "left_s"),
    [
        (1, 0, 50.0),
        (1, 2, 50.0 + 2 * 100.0),  # one after the other
        (2, 1, 100.0),  # a slot is free
        (2, 3, 50.0 + 100.0 + 100.0 - 50.0),  # 50, 100 and then 150, 200
        (4, 2, 100.0),
    ],
)
def test_trials_that_wait_begin_as_soon_as_a_slot_is_free(
    tmp_path: Path, slots: int, waiting: int, left_s: float
) -> None:
    trials = sweep_of(tmp_path / "lab", 2 + waiting).trials
    progress = LocalProgress(trials, slots, ran={trials[0].id: 100.0})
    assert progress.left_s([RunningTrial(trials[1], left_s=50.0)]) == pytest.approx(left_s)


def test_a_trial_that_has_saved_shows_how_far_it_came(tmp_path: Path) -> None:
    (trial,) = sweep_of(tmp_path / "lab", 1).trials
    progress = LocalProgress([trial], 1)
    progress.started([trial], "1", "1 of 1")
    write_metrics([{"epoch": 4, "val/dice": 0.7}], trial.folder)
    trial.write_state(TrialState("interrupted", job_id="1"))
    (look,) = progress.look()
    assert (look.epoch, look.share, look.dice, look.time) == (4, 0.4, 0.7, "saved")


@pytest.mark.slow
def test_a_sweep_that_is_stopped_says_that_it_goes_on(
    tiny_sweep: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C while the first of two trials trains and the second waits: lines until then, and no one is blamed."""
    monkeypatch.setattr(local_progress, "LINE_EVERY_S", 0.2)
    caplog.set_level(logging.INFO)

    def interrupt_when_it_trains() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and "val Dice" not in caplog.text:
            time.sleep(0.1)
        _thread.interrupt_main()

    threading.Thread(target=interrupt_when_it_trains, daemon=True).start()
    flags = [*tiny_sweep, "--cluster", "local", "--set", "train.epochs=100000"]
    assert run_command(main, flags) == CANCELLED
    said = capsys.readouterr().err
    assert "interrupted: 0 of 2 trials are done; the same command resumes the others" in said
    assert "0 of 2 trials have ended, 1 run, 1 wait; about" in caplog.text
    assert "unet none seed=0: epoch" in caplog.text
    assert "what runs saves" in caplog.text
    first, second = trial_statuses(load_sweep(tmp_path / "runs" / "lab"))
    assert (first.status, first.cause, second.status) == ("interrupted", "stopped", "planned")
    assert "the same command goes on" in first.note
    assert list((first.trial.folder / "checkpoints").glob("step-*"))


def test_a_trial_that_is_stopped_before_it_begins_has_not_failed(
    tiny_sweep: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)

    def interrupt_at_the_start() -> None:
        while "started as job" not in caplog.text:
            time.sleep(0.01)
        _thread.interrupt_main()

    threading.Thread(target=interrupt_at_the_start, daemon=True).start()
    assert run_command(main, [*tiny_sweep, "--cluster", "local"]) == CANCELLED
    first, second = trial_statuses(load_sweep(tmp_path / "runs" / "lab"))
    assert (first.status, first.cause, second.status) == ("interrupted", "stopped", "planned")
    assert "Traceback" not in capfd.readouterr().err
