"""The leaderboard beneath the table of `status --watch`, on folders written by hand."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.reporting.leaders import TOP, Leaders, lead
from jobs.reporting.rows import shown
from jobs.reporting.statistics.records import read_records
from jobs.reporting.statistics.verdict import build_leaderboard
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import TrialStatus, quick_trial_statuses
from petseg.run_folder.layout import Result, save_result

REPOSITORY = Path(__file__).parents[3]
WIDTHS = [4, 8, 16, 32, 64, 128, 256]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Seven widths by two seeds, nothing of it begun."""
    folder = tmp_path / "runs" / "lab"
    places = [(width, seed) for width in WIDTHS for seed in (0, 1)]
    trials = [
        Trial(f"{i:010x}", {"model.width": width, "train.seed": seed}, folder / "trials" / f"{i:010x}")
        for i, (width, seed) in enumerate(places)
    ]
    sweep = Sweep(folder, "lab", {"model.width": WIDTHS, "train.seed": [0, 1]}, "0" * 16, "x", tuple(trials))
    save_sweep(sweep)
    return sweep


def finish(trial: Trial, dice: float) -> None:
    trial.folder.mkdir(parents=True, exist_ok=True)
    save_result(
        Result(trial.id, {"val/dice": dice}, 7, 10, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), trial.folder
    )


def look(leaders: Leaders, sweep: Sweep) -> str:
    """What is ready when nothing is worked out any more."""
    return leaders.last(sweep, rows_of(sweep), 60).plain


def rows_of(sweep: Sweep) -> list[TrialStatus]:
    return quick_trial_statuses(sweep)[0]


def test_the_rows_are_those_of_the_report(sweep: Sweep) -> None:
    for i, trial in enumerate(sweep.trials[:-2]):
        finish(trial, 0.5 + 0.01 * i)
    rows = [line.split() for line in lead(sweep, rows_of(sweep)).plain.splitlines()]
    report = [row for row in shown(build_leaderboard(sweep, read_records(sweep))) if row["#"]]
    header = rows.index(["#", "width", "val", "Dice", "seeds"])
    assert rows[header + 1 : header + 1 + TOP] == [
        [row["#"], row["model.width"], row["val Dice"], row["seeds"]] for row in report[:TOP]
    ]
    assert rows[header + 1] == ["1", "128", "0.6050", "2/2"]
    assert " ".join(rows[-1]) == f"and 1 more cell: python jobs/report.py {sweep.folder}"  # one has no result


def test_nothing_is_shown_before_the_first_result(sweep: Sweep) -> None:
    leaders = Leaders()
    assert (look(leaders, sweep), leaders.height) == ("", 0)
    finish(sweep.trials[0], 0.75)
    assert "0.7500" in look(leaders, sweep)
    assert leaders.height == 5  # a blank line, the verdict, a blank title, the columns, a row


def test_a_result_makes_one_new_board_and_nothing_else_does(sweep: Sweep) -> None:
    finish(sweep.trials[0], 0.75)
    leaders = Leaders()
    look(leaders, sweep)
    first = leaders.look(sweep, rows_of(sweep))
    sweep.trials[1].write_state(TrialState("running", host="node1", job_id="1"))
    assert leaders.last(sweep, rows_of(sweep), 60) is first
    finish(sweep.trials[1], 0.85)
    assert "0.8000" in look(leaders, sweep)
    finish(sweep.trials[1], 0.65)  # measured again
    os.utime(sweep.trials[1].folder / "result.json", (1, 1))
    assert "0.7000" in look(leaders, sweep)


def test_a_result_of_another_version_hides_no_table(sweep: Sweep) -> None:
    for trial in sweep.trials[:2]:
        finish(trial, 0.75)
    rows = rows_of(sweep)
    (sweep.trials[1].folder / "result.json").write_text('{"speed": 3}')
    leaders = Leaders()
    shown = leaders.last(sweep, rows, 60).plain
    assert "0.7500" in shown
    assert "1/2" in shown  # of two seeds


def test_a_pause_ends_when_a_board_is_ready(sweep: Sweep) -> None:
    finish(sweep.trials[0], 0.75)
    leaders = Leaders()
    leaders.look(sweep, rows_of(sweep))
    leaders.pause(600)
    assert "0.7500" in leaders.look(sweep, rows_of(sweep)).plain


def test_a_terminal_shows_it_beneath_the_table(sweep: Sweep) -> None:
    finish(sweep.trials[0], 0.75)
    sweep = replace(sweep, trials=sweep.trials[:2])
    save_sweep(sweep)
    running = sweep.trials[1]
    sweep.add_submissions([Submission(running.id, "debug", "debug", "")])
    running.write_state(TrialState("running", host=socket.gethostname(), job_id="debug", pid=os.getpid()))
    ours, theirs = pty.openpty()
    command = [sys.executable, "jobs/status.py", str(sweep.folder), "--watch", "--every", "600"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=theirs, env=environment) as watching:
        os.close(theirs)
        try:
            said = read_until(ours, r"\n1 +\S* +0\.7500")
            watching.send_signal(signal.SIGINT)
            rest = read_until(ours, None)
        finally:
            watching.kill()
    assert "running" in said[: said.rindex("0.7500")]
    os.close(ours)
    assert watching.returncode == 0
    assert rest.count("0.7500") >= 2  # the table and the leaderboard stay


def read_until(terminal: int, pattern: str | None) -> str:
    """What a terminal is told, until a pattern comes or whoever writes is gone."""
    said = ""
    while not (pattern and re.search(pattern, said)):
        assert select.select([terminal], [], [], 60)[0], said
        try:
            said += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # Linux's end of a terminal
            break
    return said
