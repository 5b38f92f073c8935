"""The cells, lines and rows in which status tells where the trials of a sweep stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from jobs.runs.trial import Submission, Sweep
from jobs.state import table as module
from jobs.state.slurm_states import Answer
from jobs.state.table import (
    COLUMNS,
    LOG_WIDTH,
    MAX_FOLDED,
    MAX_NAMED,
    MAX_TRACEBACK_LINES,
    dice_text,
    epoch_text,
    failure_lines,
    group_failures,
    plain_table,
    render,
    render_table,
    source_line,
    state_text,
    title_of,
    to_document,
    wait_lines,
)
from jobs.state.triage import Diagnosis
from jobs.state.trial_status import STATES, TrialStatus
from jobs.state.waits import Wait
from petseg.run_folder.heartbeat import Heartbeat
from shards.cause import Cause
from slurm.cluster import JobState
from tests.jobs.written_trials import sweep_of

BEAT = Heartbeat(0.0, 4, 10, 60, 100, 64.0)
CODE = Diagnosis(Cause.CODE, "fix the code", False, "KeyError at x.py:1", "line 1\nline 2")
MEMORY = Diagnosis(Cause.GPU_MEMORY, "take less", True, "gpu_memory")
HELD = Wait("held", "JobHeldUser", "release it")
HELD_LAUNCH = Wait("failed_launch", "JobHoldMaxRequeue", "see the node")
NEVER = Wait("never", "BadConstraints", "cancel it")
BLOCKED = Wait("blocked", "PartitionDown", "wait")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "my lab", MAX_NAMED + 2)


def rows_of(sweep: Sweep, *states: str, **values: Any) -> list[TrialStatus]:
    return [TrialStatus(trial, state, **values) for trial, state in zip(sweep.trials, states, strict=False)]


def ids(sweep: Sweep, count: int) -> str:
    return ", ".join(trial.id for trial in sweep.trials[:count])


def test_the_title_counts_the_states_that_there_are_in_their_order(sweep: Sweep) -> None:
    assert title_of(sweep, rows_of(sweep, "done", "failed", "done", "running")) == "my lab: 1 running, 1 failed, 2 done"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Answer(), ""),
        (Answer({"1": JobState("UNKNOWN", "timed out", "", "none")}, 990.0),
         "Slurm does not answer (timed out): what became of their jobs is unknown"),
        (Answer({"1": JobState("RUNNING", "", "", "squeue")}, 997.6), "states of jobs by squeue, 2 s ago"),
    ],
)  # fmt: skip
def test_the_last_line_says_who_knows_the_states(monkeypatch: pytest.MonkeyPatch, answer: Answer, line: str) -> None:
    monkeypatch.setattr("jobs.state.slurm_states.time.time", lambda: 1000.0)
    assert source_line(answer) == line


@pytest.mark.parametrize(
    ("state", "values", "text"),
    [
        ("failed", {"verdict": MEMORY, "note": "CUDA", "restarts": 2}, "failed: gpu_memory"),
        ("interrupted", {"verdict": MEMORY, "note": "a word"}, "interrupted: gpu_memory"),
        ("interrupted", {"note": "no sign of life"}, "interrupted: no sign of life"),
        ("running", {"left_s": 0.0}, "running, 0 s left"),
        ("running", {"note": "starting", "restarts": 1}, "running: starting, 1 restart"),
        ("running", {"left_s": 720.0, "restarts": 2}, "running, 12 min left, 2 restarts"),
        ("stalled", {"left_s": 720.0, "note": "see its log"}, "stalled: see its log"),
        ("queued", {"note": "Priority", "restarts": 3}, "queued: Priority, 3 restarts"),
        ("planned", {"restarts": 1}, "planned"),
        ("done", {"restarts": 1}, "done"),
    ],
)
def test_the_state_of_a_trial_in_a_cell(sweep: Sweep, state: str, values: dict[str, Any], text: str) -> None:
    assert state_text(TrialStatus(sweep.trials[0], state, **values)) == text


@pytest.mark.parametrize(
    ("state", "values", "text"),
    [
        ("running", {"beat": BEAT, "epoch": 3, "epochs": 10}, "4/10 step 60/100"),
        ("stalled", {"beat": BEAT, "epochs": 0}, "4/? step 60/100"),
        ("unknown", {"beat": BEAT, "epochs": 10}, "4/10 step 60/100"),
        ("interrupted", {"beat": BEAT, "epoch": 3, "epochs": 10}, "3/10"),
        ("running", {"epoch": 3, "epochs": 0}, "3/?"),
        ("queued", {"epoch": 0, "epochs": 10}, "0/10"),
        ("planned", {}, ""),
    ],
)
def test_how_far_a_trial_is_in_a_cell(sweep: Sweep, state: str, values: dict[str, Any], text: str) -> None:
    assert epoch_text(TrialStatus(sweep.trials[0], state, **values)) == text


def test_a_dice_has_four_digits_also_where_it_is_nought(sweep: Sweep) -> None:
    (row,) = rows_of(sweep, "running")
    assert [dice_text(replace(row, dice=dice)) for dice in (None, 0.0, 0.98765)] == ["", "0.0000", "0.9877"]


def test_the_most_frequent_failure_comes_first_and_unlike_ones_are_apart(sweep: Sweep) -> None:
    other = replace(CODE, signature="ValueError at x.py:9")
    verdicts = [CODE, MEMORY, other, MEMORY, None, other, MEMORY]
    rows = [TrialStatus(t, "failed", verdict=v) for t, v in zip(sweep.trials, verdicts, strict=False)]
    groups = group_failures(rows)
    assert [(group.verdict, [rows.index(row) for row in group.rows]) for group in groups] == [
        (MEMORY, [1, 3, 6]), (other, [2, 5]), (CODE, [0]),
    ]  # fmt: skip


def test_a_failure_has_its_trials_its_error_its_advice_and_the_next_command(sweep: Sweep) -> None:
    retry = f"python jobs/retry.py '{sweep.folder}' --cause"
    rows = rows_of(sweep, "failed", verdict=CODE, note="KeyError\nmore")
    assert list(failure_lines(sweep, rows)) == [
        f"\ncode: 1 trial: {sweep.trials[0].id}", "  KeyError", "  fix the code", f"  next: {retry} code --even-so",
        "  | line 1\n  | line 2",
    ]  # fmt: skip
    expected = [f"\ngpu_memory: 2 trials: {ids(sweep, 2)}", "  take less", f"  next: {retry} gpu_memory"]
    for note in ("", "take less"):  # which the advice says already
        assert list(failure_lines(sweep, rows_of(sweep, "failed", "failed", verdict=MEMORY, note=note))) == expected
    long = rows_of(sweep, "failed", verdict=MEMORY, note="x" * 500)
    assert list(failure_lines(sweep, long))[1] == "  " + "x" * 400


@pytest.mark.parametrize("count", [MAX_TRACEBACK_LINES, MAX_TRACEBACK_LINES + 1])
def test_of_a_long_traceback_the_end_is_shown(sweep: Sweep, count: int) -> None:
    verdict = replace(CODE, traceback="\n".join(str(number) for number in range(count)))
    *_, shown = failure_lines(sweep, rows_of(sweep, "failed", verdict=verdict))
    cut = count > MAX_TRACEBACK_LINES
    assert shown.splitlines() == ["  | ..."] * cut + [f"  | {number}" for number in range(cut, count)]


def test_a_failure_of_many_names_some_of_them(sweep: Sweep) -> None:
    for count, more in ((MAX_NAMED, ""), (MAX_NAMED + 2, " and 2 more")):
        first, *_ = failure_lines(sweep, rows_of(sweep, *["failed"] * count, verdict=MEMORY))
        assert first == f"\ngpu_memory: {count} trials: {ids(sweep, MAX_NAMED)}{more}"


@pytest.mark.parametrize(
    ("wait", "following"),
    [
        (HELD, ["python jobs/retry.py 'FOLDER' --held"]),
        (HELD_LAUNCH, ["python jobs/retry.py 'FOLDER' --failed"]),
        (NEVER, ["python jobs/cancel.py 'FOLDER' ID"]),
        (BLOCKED, []),
    ],
)
def test_a_wait_is_told_once_with_what_ends_it(sweep: Sweep, wait: Wait, following: list[str]) -> None:
    rows = [*rows_of(sweep, "queued", "running", wait=wait), TrialStatus(sweep.trials[2], "queued")]
    told = [f"\n{wait.reason}: 1 trial: {sweep.trials[0].id}", f"  {wait.advice}"]
    named = [line.replace("FOLDER", str(sweep.folder)).replace("ID", sweep.trials[0].id) for line in following]
    assert list(wait_lines(sweep, rows)) == [*told, *(f"  next: {line}" for line in named)]


@pytest.mark.parametrize("count", [MAX_NAMED, MAX_NAMED + 1])
def test_many_trials_that_never_start_are_cancelled_with_the_sweep(sweep: Sweep, count: int) -> None:
    *_, last = wait_lines(sweep, rows_of(sweep, *["queued"] * count, wait=NEVER))
    words = [trial.id for trial in sweep.trials[:count]] if count <= MAX_NAMED else []
    assert last == " ".join(["  next: python jobs/cancel.py", f"'{sweep.folder}'", *words])


def test_plain_columns_are_as_wide_as_their_longest_cell() -> None:
    text = plain_table("a title", [("name", "epoch"), ("b", "10"), ("long one", "")])
    assert text.plain == "a title\nname      epoch\nb            10\nlong one"
    assert (text.no_wrap, text.overflow) == (True, "ignore")


def test_a_table_has_the_logs_where_they_fit_and_colours(sweep: Sweep) -> None:
    rows = rows_of(sweep, "failed", "done", verdict=CODE, log="a.out", host="n1", dice=0.5, epoch=3, epochs=9)
    wide = render_table("[title]", rows, LOG_WIDTH)
    assert isinstance(wide, Table)
    assert [str(column.header) for column in wide.columns] == list(COLUMNS)
    assert [column.justify for column in wide.columns] == ["left"] * 3 + ["right"] * 2 + ["left"] * 2
    assert {column.overflow for column in wide.columns} == {"fold"}
    assert [row.style for row in wide.rows] == ["red", ""]
    assert (str(wide.title), wide.title_justify) == ("[title]", "left")
    cells = [next(str(cell) for cell in column.cells) for column in wide.columns]
    assert cells == [sweep.trials[0].id, "unet seed=0", "failed: code", "3/9", "0.5000", "n1", "a.out"]
    narrow = render_table("t", rows, LOG_WIDTH - 1)
    assert isinstance(narrow, Table)
    assert [str(column.header) for column in narrow.columns] == list(COLUMNS[:-1])


@pytest.mark.parametrize("count", [MAX_FOLDED, MAX_FOLDED + 1])
def test_only_so_many_rows_are_a_table_with_lines(sweep: Sweep, count: int) -> None:
    shown = render_table("t", rows_of(sweep, "done") * count, 200)
    assert isinstance(shown, Table if count == MAX_FOLDED else Text)


def parts(sweep: Sweep, rows: Sequence[TrialStatus], answer: Answer, most: int) -> tuple[list[str], list[str]]:
    """The ids in the table, and the lines after it."""
    table, *lines = render(sweep, rows, answer, 100, most).renderables  # type: ignore[union-attr]
    assert isinstance(table, Table)
    return [str(cell) for cell in table.columns[0].cells], [str(line) for line in lines]


def test_of_more_trials_than_fit_those_that_live_come_first(sweep: Sweep) -> None:
    rows = rows_of(sweep, *reversed(STATES))
    names = [row.trial.id for row in rows]
    for most in (0, len(rows), len(rows) + 1):
        assert parts(sweep, rows, Answer(), most) == (names, [])
    assert parts(sweep, rows, Answer(), 2) == ([names[-1], names[-2]], [f"and {len(rows) - 2} more trials"])


def test_below_the_table_come_failures_waits_and_the_source(sweep: Sweep) -> None:
    failed, waits = rows_of(sweep, "failed", "queued")
    rows = [replace(failed, verdict=MEMORY), replace(waits, wait=BLOCKED)]
    answer = Answer({"1": JobState("PENDING", "", "", "squeue")}, 1.0)
    _, lines = parts(sweep, rows, answer, 0)
    assert [line.split(":")[0] for line in lines[:5]] == [
        "\ngpu_memory", "  take less", "  next", "\nPartitionDown", "  wait",
    ]  # fmt: skip
    assert lines[5:] == [source_line(answer)]


def test_a_document_has_all_of_a_trial_its_failure_and_its_wait(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 1000.0)
    one, two, three = sweep.trials[:3]
    submission = Submission(one.id, "12_0", "slurm", "a.out")
    rows = [
        TrialStatus(one, "running", "a note", 3, 10, 0.5, "n1", "a.out", BEAT, 7.5, 2, submission),
        TrialStatus(two, "failed", verdict=CODE),
        TrialStatus(three, "queued", wait=HELD),
    ]
    document = to_document(sweep, rows, Answer({"12_0": JobState("RUNNING", "", "", "squeue")}, 987.654))
    trials = document.pop("trials")
    assert trials[0] == {
        "id": one.id, "label": "unet seed=0", "axes": one.axes, "state": "running", "cause": "", "note": "a note",
        "epoch": 3, "epochs": 10, "step": 60, "steps_per_epoch": 100, "images_per_s": 64.0, "left_s": 7.5,
        "val_dice": 0.5, "restarts": 2, "host": "n1", "cluster": "slurm", "job_id": "12_0", "log": "a.out",
    }  # fmt: skip
    nothing = {
        "step": None,
        "steps_per_epoch": None,
        "images_per_s": None,
        "cluster": "",
        "job_id": "",
        "cause": "code",
    }
    assert {name: trials[1][name] for name in nothing} == nothing
    assert {name: document[name] for name in ("format_version", "sweep", "folder", "time", "slurm", "counts")} == {
        "format_version": 1, "sweep": "my lab", "folder": str(sweep.folder), "time": 1000.0,
        "slurm": {"source": "squeue", "why": "", "age_s": 12.3},
        "counts": dict.fromkeys(STATES, 0) | {"running": 1, "failed": 1, "queued": 1},
    }  # fmt: skip
    assert document["failures"] == [
        {
            "cause": "code", "signature": CODE.signature, "advice": "fix the code", "retryable": False,
            "traceback": CODE.traceback, "trials": [two.id],
        }
    ]  # fmt: skip
    assert document["waits"] == [
        {"kind": "held", "reason": "JobHeldUser", "advice": "release it", "trials": [three.id]}
    ]
    assert document["wandb"]["project_urls"] == []
