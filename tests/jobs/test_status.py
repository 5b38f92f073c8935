"""What the command shows: the table, each failure once, JSON, and `--watch`."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from jobs import status
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.chain_state import ChainJob, Note
from jobs.state.observed import Observed
from jobs.state.slurm_states import Answer
from jobs.state.table import render, render_table
from jobs.state.trial_status import trial_status
from jobs.status import chain_code, exit_code, main, tell_lines
from shards.command import run_command
from tests.jobs.written_trials import beat, finish, sweep_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 4)


def test_no_sweep_is_one_line_that_names_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["lab", "--runs-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("start one with `python jobs/sweep.py`\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sweep.json").write_text("{}")
    assert run_command(main, ["lab", "--runs-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no sweep in" in error
    assert error.endswith("or name one of other\n")


def failed_twice(sweep: Sweep) -> None:
    """Two trials that failed alike, one that is done, one that is planned."""
    logs = sweep.folder / "logs"
    logs.mkdir()
    for number, trial in enumerate(sweep.trials[:2]):
        log = logs / f"12_{number}_0_log.out"
        frames = '  File "/home/me/petseg/petseg/train.py", line 141, in train_step\n'
        log.write_text(f"Traceback (most recent call last):\n{frames}KeyError: 'dice'\n")
        sweep.add_submissions([Submission(trial.id, f"99999999{number}", "local", str(log))])
        trial.write_state(TrialState("failed", error="KeyError: 'dice'", host="node1", job_id=f"99999999{number}"))
    finish(sweep.trials[2])


def test_each_distinct_failure_is_shown_once(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    failed_twice(sweep)
    assert run_command(main, [str(sweep.folder)]) == 3
    out = capsys.readouterr().out
    assert "lab: 2 failed, 1 planned, 1 done" in out
    assert out.count("failed: code") == 2
    assert out.count("Traceback") == 1
    assert f"code: 2 trials: {sweep.trials[0].id}, {sweep.trials[1].id}" in out
    assert f"next: python jobs/retry.py {sweep.folder} --cause code --even-so" in out
    sweep.add_submissions([Submission(sweep.trials[3].id, "12_3", "slurm", "")])
    assert "Slurm does not answer (no squeue on PATH)" in _shown(sweep, capsys)


def _shown(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> str:
    """Without Slurm, whose job may be there or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        assert run_command(main, [str(sweep.folder)]) == 4
    return capsys.readouterr().out


def test_json_is_one_document_of_stable_names(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    failed_twice(sweep)
    assert run_command(main, [str(sweep.folder), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["format_version"] == 1
    assert document["slurm"] == {"source": "", "why": "", "age_s": 0.0}
    assert document["counts"]["failed"] == 2
    assert [trial["state"] for trial in document["trials"]] == ["failed", "failed", "done", "planned"]
    assert document["trials"][0]["cause"] == "code"
    assert document["trials"][2]["val_dice"] == 0.9
    assert document["failures"][0]["trials"] == [trial.id for trial in sweep.trials[:2]]
    listed = set(re.findall(r"\w+", sys.modules[main.__module__].__doc__ or ""))
    names = {*document, *document["slurm"], *document["trials"][0], *document["failures"][0]}
    assert names <= listed  # the docstring is their manual
    assert run_command(main, [str(sweep.folder), "--json", "--watch"]) == 2
    assert run_command(main, [str(sweep.folder), "--watch", "--every", "0"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --json prints one document: leave --watch out",
        "error: --every 0: must be at least 1 second",
    ]


def test_json_says_of_each_trial_and_failure_what_its_folder_says(
    sweep: Sweep, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """One trial each that has failed, runs, is done, and is planned; what is not known is null or empty, never 0."""
    failed_twice(sweep)
    failed, running, done, planned = sweep.trials
    sweep.add_submissions([Submission(running.id, str(process.pid), "local", "run.out")])
    running.write_state(TrialState("running", host=socket.gethostname(), job_id=str(process.pid), restarts=2))
    (running.folder / "metrics.jsonl").write_text('{"epoch": 3, "val/dice": 0.75}\n')
    beat(running, 4, 60, time.time())
    assert run_command(main, [str(sweep.folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["trials"]
    log = str(sweep.folder / "logs" / "12_0_0_log.out")
    assert rows[0] == _as_json(
        failed, 0, state="failed", cause="code", note="KeyError: 'dice'", epochs=10, host="node1", log=log
    ) | {"cluster": "local", "job_id": "999999990"}
    assert rows[1].pop("left_s") > 0
    assert rows[1] == _as_json(
        running, 1, state="running", epoch=3, epochs=10, step=60, steps_per_epoch=100, images_per_s=64.0, val_dice=0.75
    ) | {"restarts": 2, "host": socket.gethostname(), "cluster": "local", "job_id": str(process.pid)} | {
        "log": str(sweep.folder / "logs" / "run.out")
    }
    assert rows[2] == _as_json(done, 2, state="done", epoch=10, epochs=10, val_dice=0.9, host="node1")
    assert rows[3] == _as_json(planned, 3, state="planned")
    (failure,) = document["failures"]
    assert failure["traceback"].startswith("Traceback (most recent call last):\n")
    assert failure["traceback"].endswith("in train_step\nKeyError: 'dice'")
    assert failure["signature"] != failure["traceback"]
    assert (failure["cause"], failure["retryable"], failure["trials"]) == ("code", False, [failed.id])
    assert document["counts"] == dict.fromkeys(document["counts"], 0) | {
        "failed": 1, "running": 1, "done": 1, "planned": 1
    }  # fmt: skip


def _as_json(trial: Trial, seed: int, **known: object) -> dict[str, object]:
    """A trial of which nothing is known but its place on the axes, and what is known."""
    unknown = dict.fromkeys(("step", "steps_per_epoch", "images_per_s", "left_s", "val_dice"))
    empty = dict.fromkeys(("cause", "note", "host", "cluster", "job_id", "log"), "")
    place = {"id": trial.id, "label": f"unet seed={seed}", "axes": {"model.arch": "unet", "train.seed": seed}}
    counts = {"epoch": 0, "epochs": 0, "restarts": 0}
    row = {**place, **unknown, **empty, **counts, **known}
    if row["state"] == "running":
        row.pop("left_s")  # which the clock decides
    return row


def test_watch_ends_when_nothing_lives(sweep: Sweep, process: subprocess.Popen[bytes]) -> None:
    first = sweep.trials[0]
    sweep.add_submissions([Submission(first.id, str(process.pid), "local", "")])
    first.write_state(TrialState("running", host=socket.gethostname(), job_id=str(process.pid)))
    command = [sys.executable, "jobs/status.py", str(sweep.folder), "--watch", "--every", "1"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert "lab: 1 running, 3 planned" in watching.stdout.readline()
        process.kill()
        process.wait()
        out, _ = watching.communicate(timeout=60)
    assert "lab: 1 interrupted, 3 planned" in out
    assert watching.returncode == 0


def test_watch_ends_by_ctrl_c_without_a_complaint(sweep: Sweep, process: subprocess.Popen[bytes]) -> None:
    sweep.add_submissions([Submission(sweep.trials[0].id, str(process.pid), "local", "")])
    command = [sys.executable, "jobs/status.py", str(sweep.folder), "--watch"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        out, error = watching.communicate(timeout=60)
    assert (watching.returncode, error) == (0, "")
    assert "running" in out


def test_many_trials_are_shown_as_plain_columns(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs" / "big", 205)
    table = str(render_table("big", [trial_status(trial, None, {}) for trial in sweep.trials], 200))
    assert table.count("\n") == 206
    assert "log" in table
    assert "log" not in str(render_table("big", [trial_status(trial, None, {}) for trial in sweep.trials], 80))
    assert "unet seed=204  planned" in table


def test_where_not_all_trials_fit_those_that_live_are_shown(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 4)
    finish(sweep.trials[0])
    live = sweep.trials[2]
    submission = Submission(live.id, str(process.pid), "local", "")
    live.write_state(TrialState("running", host=socket.gethostname(), job_id=str(process.pid)))
    rows = [trial_status(trial, submission if trial is live else None, {}) for trial in sweep.trials]
    shown = {most: printed(render(sweep, rows, Answer(), 200, most)) for most in (0, 1, 3, 4)}
    assert [[trial.id in text for trial in sweep.trials] for text in shown.values()] == [
        [True] * 4, [False, False, True, False], [False, True, True, True], [True] * 4,
    ]  # fmt: skip
    assert "and 3 more trials" in shown[1]
    assert "and 1 more trials" in shown[3]
    assert "more trials" not in shown[0] + shown[4]


def printed(what: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_lines_of_a_chain_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    """They hold commands and paths that people copy."""
    line = f"  pack: job 12, see /{'long/' * 60}[0]"
    tell_lines([line])
    assert capsys.readouterr().out == f"{line}\n"


@pytest.mark.parametrize(
    ("states", "code"), [((), 0), (("done", "waits"), 0), (("done", "failed"), 3), (("failed", "done"), 3)]
)
def test_a_chain_with_a_failed_job_has_failed(states: tuple[str, ...], code: int) -> None:
    assert chain_code([ChainJob(Note("pack", "12", "", ""), state) for state in states]) == code


def test_a_log_of_a_watch_has_a_line_for_each_change_and_the_last_table(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = sweep.trials[0]
    running = replace(trial_status(trial, None, {}), status="running")
    planned = [trial_status(one, None, {}) for one in sweep.trials[1:]]
    ended = replace(running, status="failed")
    looks = [Observed(sweep, (row, *planned)) for row in (running, running, replace(running, status="queued"), ended)]
    pauses: list[float] = []
    monkeypatch.setattr(status, "glance", lambda sweep: looks.pop(0))
    monkeypatch.setattr(status.time, "sleep", pauses.append)
    assert status.watch(sweep, 7.0) == 3
    assert pauses == [7.0] * 3
    lines = [line[9:] for line in capsys.readouterr().out.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert lines == ["lab: 1 running, 3 planned; ", "lab: 1 queued, 3 planned; "]
    assert looks == []


@pytest.mark.parametrize("live", [True, False])
def test_who_stops_watching_does_not_wait_long_for_the_leaderboard(sweep: Sweep, live: bool) -> None:
    waited: list[float] = []

    class Leaders:
        def last(self, sweep: Sweep, rows: object, wait_s: float) -> None:
            waited.append(wait_s)

    row = replace(trial_status(sweep.trials[0], None, {}), status="running" if live else "done")
    leaders: Any = Leaders()
    assert status._end(Console(width=200, quiet=True), Observed(sweep, (row,)), leaders) == 0
    assert waited == [status.LAST_BOARD_S / 30 if live else status.LAST_BOARD_S]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ((), 0),
        (("done", "planned", "interrupted", "pruned"), 0),
        (("done", "failed"), 3),
        (("failed", "running"), 0),  # it is not over
        (("failed", "queued"), 0),
        (("failed", "stalled"), 0),
        (("failed", "unknown", "running"), 4),
    ],
)
def test_the_exit_code_of_a_sweep(sweep: Sweep, states: tuple[str, ...], code: int) -> None:
    row = trial_status(sweep.trials[0], None, {})
    assert exit_code([replace(row, status=state) for state in states]) == code
