"""The rows of a sweep: which jobs Slurm is asked about, what the folder of each trial adds, and who counts as alive."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.trial import Submission, Sweep, Trial
from jobs.state import trial_status as module
from jobs.state.job_ends import read_ends
from jobs.state.slurm_states import Answer
from jobs.state.trial_status import (
    TrialStatus,
    quick_trial_statuses,
    rows_of,
    trial_status,
    trial_statuses,
    unknown_line,
)
from petseg.run_folder.layout import Pruned, save_pruned, write_metrics
from shards.cause import Cause
from slurm.cluster import JobState
from tests.jobs.written_trials import beat, finish, on_slurm, state_of, sweep_of

RUNNING = JobState("RUNNING", "", "node1", "squeue")
MISSING = JobState("MISSING", "", "", "squeue")
PRUNED = Pruned("0000000000", 4, 10, 3, 0.7, 0.6, 0.65, 16, "node9", 60.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 6)


@pytest.fixture
def trial(sweep: Sweep) -> Trial:
    return sweep.trials[3]


def test_slurm_is_asked_about_the_jobs_of_trials_that_have_not_ended(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last three: one on this machine, one whose submission was cut off, one that was never submitted."""
    jobs = [("1", "slurm"), ("2", "slurm"), ("3", "slurm"), ("4", "local"), ("", "slurm")]
    for trial, (job_id, cluster) in zip(sweep.trials, jobs, strict=False):
        sweep.add_submissions([Submission(trial.id, job_id, cluster, "")])
    finish(sweep.trials[1])
    save_pruned(PRUNED, sweep.trials[2].folder)
    asked: list[Any] = []

    def states(ids: Iterable[str], patience_s: float | None) -> dict[str, JobState]:
        asked.append((list(ids), patience_s))
        return {"1": RUNNING}

    monkeypatch.setattr(module, "job_states", states)
    monkeypatch.setattr(module, "ask", lambda folder, ids: asked.append((folder, ids)) or Answer({"1": RUNNING}, 7.0))
    rows = trial_statuses(sweep, 3.0)
    assert [row.status for row in rows] == ["running", "done", "pruned", "interrupted", "planned", "planned"]
    quick, answer = quick_trial_statuses(sweep)
    assert (quick, answer) == (rows, Answer({"1": RUNNING}, 7.0))
    assert asked == [(["1"], 3.0), (sweep.folder, ["1"])]


def test_what_slurm_does_not_say_is_one_line(trial: Trial) -> None:
    known, unknown = TrialStatus(trial, "running"), TrialStatus(trial, "unknown", silence="timed out")
    assert unknown_line([]) == unknown_line([known]) == ""
    assert unknown_line([known, unknown, replace(unknown, silence="x")]) == (
        "unknown: 2 of 3 trials, because Slurm does not answer (timed out). Try again when it does"
    )


@pytest.mark.parametrize(
    ("states", "causes"),
    [
        ([], ["node_failure", "node_failure"]),
        ([(0, "running", -5)], ["node_failure", "node_failure"]),
        ([(0, "running", 5)], ["unknown", "unknown"]),  # somebody had it requeued since
        ([(0, "running", 5), (1, "running", -5)], ["unknown", "unknown"]),
        ([(1, "running", 5)], ["unknown", "unknown"]),
        ([(0, "interrupted", 5)], ["node_failure", "node_failure"]),
    ],
)
def test_an_end_is_noted_and_holds_until_a_trial_of_its_job_begins_again(
    sweep: Sweep, states: list[tuple[int, Any, float]], causes: list[str]
) -> None:
    pair = sweep.trials[:2]
    given = {trial.id: Submission(trial.id, "12_0", "slurm", "") for trial in pair}
    rows_of(sweep, given, {"12_0": JobState("NODE_FAIL", "", "node1", "squeue")})
    noted = read_ends(sweep.folder)["12_0"]
    assert noted.state.state == "NODE_FAIL"
    for place, word, after in states:
        state_of(sweep.trials[place], noted.time + after, status=word, job_id="12_0")
    state_of(sweep.trials[2], noted.time + 5, status="running", job_id="77")  # of no job of theirs
    given[sweep.trials[2].id] = Submission(sweep.trials[2].id, "77", "slurm", "")
    told = [row.cause for row in rows_of(sweep, given, {"12_0": MISSING, "77": RUNNING})]
    begun = {place for place, _, _ in states}
    expected = ["never_began" if c == "unknown" and n not in begun else c for n, c in enumerate(causes)]
    assert told[:3] == [*expected, ""]


def test_jobs_of_one_trial_are_not_shared(sweep: Sweep) -> None:
    """So their trials start at once; the trials of a shared job wait for their turn."""
    given = {
        trial.id: Submission(trial.id, job_id, "slurm", "")
        for trial, job_id in zip(sweep.trials, "11234", strict=False)
    }
    rows = rows_of(sweep, given, dict.fromkeys("1234", RUNNING))
    assert [(row.status, row.note) for row in rows] == [
        *[("queued", "waits for its turn in its job")] * 2, *[("running", "starting")] * 3, ("planned", ""),
    ]  # fmt: skip
    for trial in sweep.trials[:5]:
        state_of(trial, status="running", host="node1", job_id=given[trial.id].job_id)
    rows = rows_of(sweep, given, dict.fromkeys("1234", RUNNING))
    assert [row.status for row in rows] == ["queued", "running", "running", "running", "running", "planned"]
    assert {row.epoch for row in rows} == {0}
    lives = [{"number": 1, "host": "node1", "job_id": "", "code": "", "first_step": 0, "time": time.time()}]
    (sweep.trials[5].folder / "lives.json").write_text(json.dumps(lives))  # started by hand
    assert rows_of(sweep, given, dict.fromkeys("1234", RUNNING))[5].status == "running"


def test_the_row_of_a_finished_trial_is_its_result_and_that_of_a_pruned_one_its_last_rung(trial: Trial) -> None:
    submission = Submission(trial.id, "12_0", "slurm", "x.out")
    save_pruned(PRUNED, trial.folder)
    pruned = TrialStatus(
        trial, "pruned", epoch=4, epochs=10, dice=0.7, host="node9", log="x.out", submission=submission
    )
    assert trial_status(trial, submission, {}) == pruned
    assert trial_status(trial, None, {}) == replace(pruned, log="", submission=None)
    finish(trial)
    done = TrialStatus(trial, "done", epoch=10, epochs=10, dice=0.9, host="node1", log="x.out", submission=submission)
    assert trial_status(trial, submission, {}) == done


def test_the_row_of_an_unfinished_trial_has_its_progress_its_restarts_and_the_log_of_its_worker(trial: Trial) -> None:
    state_of(trial, status="running", host="node1", job_id="12_0", restarts=2)
    write_metrics([{"epoch": 1, "val/dice": 0.2}, {"epoch": 2, "val/dice": 0.4}], trial.folder)
    beat(trial, 3, 50, time.time() + 1)
    submission = Submission(trial.id, "12_0", "slurm", "/logs/12_0_0_log.out")
    row = trial_status(trial, submission, {"12_0": RUNNING})
    assert (row.status, row.epoch, row.epochs, row.dice) == ("running", 2, 10, 0.4)
    assert (row.host, row.restarts, row.log, row.submission) == ("node1", 2, "/logs/12_0_0_log.out", submission)
    assert (row.beat is not None, row.left_s, row.verdict, row.cause) == (True, (1000 - 250) * 32 / 64, None, "")
    state_of(trial, status="running", host="node1", job_id="12_0", slot=2, at_once=2)
    assert trial_status(trial, submission, {"12_0": RUNNING}).log == "/logs/12_0_2_log.out"
    assert trial_status(trial, replace(submission, job_id="13_0"), {"13_0": RUNNING}).log == "/logs/12_0_0_log.out"


@pytest.mark.parametrize(
    "word", ["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "PREEMPTED"]
)
def test_a_waiting_job_says_why_or_that_it_comes_again(trial: Trial, word: str) -> None:
    row = trial_status(trial, *on_slurm(trial, word, "JobHeldUser"))
    assert (row.status, row.note) == ("queued", "JobHeldUser")
    assert row.wait is not None
    assert row.wait.is_held
    assert trial_status(trial, *on_slurm(trial, word)).note == ""
    state_of(trial, status="interrupted", job_id="12_0")
    assert trial_status(trial, *on_slurm(trial, word)).note == "its job comes again"


def test_a_slurm_that_does_not_answer_shows_the_last_heartbeat_of_a_trial_that_ran(trial: Trial) -> None:
    state_of(trial, status="running", host="node1", job_id="12_0")
    beat(trial, 3, 50, time.time() + 1)
    row = trial_status(trial, *on_slurm(trial, "UNKNOWN", "timed out"))
    assert (row.status, row.silence) == ("unknown", "timed out")
    assert row.note.startswith("Slurm does not answer; last sign of life")
    assert row.beat is not None
    state_of(trial, status="interrupted", host="node1", job_id="12_0")
    row = trial_status(trial, *on_slurm(trial, "UNKNOWN", "timed out"))
    assert (row.note, row.beat) == ("Slurm does not answer", None)


@pytest.mark.parametrize(
    ("state", "word", "status", "note"),
    [
        ({"status": "failed", "cause": Cause.NAN, "error": "a NaN"}, "FAILED", "failed", "a NaN"),
        ({"status": "failed", "cause": Cause.CODE}, "FAILED", "failed", "the code raised an error, and would again"),
        ({"status": "failed", "cause": Cause.KILLED}, "FAILED", "failed", "it was killed without a word"),
        ({"status": "done"}, "COMPLETED", "interrupted", "its result.json is gone: run the sweep again"),
        ({"status": "pruned"}, "RUNNING", "interrupted", "its result.json is gone: run the sweep again"),
        ({"status": "running"}, "TIMEOUT", "interrupted", "its time was up before it finished an epoch"),
        ({"status": "running"}, "OUT_OF_MEMORY", "failed", "the node's memory did not suffice"),
        ({"status": "running"}, "MISSING", "interrupted", "nothing says why it ended: see its log"),
        (None, "MISSING", "interrupted", "it never began, and Slurm no longer knows its job"),
        (None, "COMPLETED", "interrupted", "nothing says why it ended: see its log"),
        (None, "CANCELLED", "interrupted", "somebody ended it: submit it again to go on"),
    ],
)
def test_a_trial_that_is_over_failed_or_was_interrupted_and_says_why(
    trial: Trial, state: dict[str, Any] | None, word: str, status: str, note: str
) -> None:
    if state is not None:
        state_of(trial, job_id="12_0", **state)
    row = trial_status(trial, *on_slurm(trial, word))
    assert row.status == status
    assert row.note.startswith(note), row.note


def test_an_unreadable_result_makes_a_trial_failed_whatever_ended_it(trial: Trial) -> None:
    (trial.folder / "result.json").write_text("{}")
    row = trial_status(trial, *on_slurm(trial, "CANCELLED"))
    assert (row.status, row.cause) == ("failed", "cancelled")
    assert "result.json" in row.note
    planned = trial_status(trial, None, {})
    assert (planned.status, planned.note) == ("planned", row.note)


def test_a_run_without_a_job_lives_by_its_heartbeat(trial: Trial) -> None:
    """It was started by hand, for the second time."""
    now = time.time()
    lives = [{"number": n, "host": f"node{n}", "job_id": "", "code": "", "first_step": 0, "time": now} for n in (1, 2)]
    (trial.folder / "lives.json").write_text(json.dumps(lives))
    write_metrics([{"epoch": 2, "val/dice": 0.4, "perf/seconds": 1.0}], trial.folder)
    beat(trial, 3, 50, now + 1)
    row = trial_status(trial, None, {})
    assert (row.status, row.host, row.restarts, row.epoch, row.dice) == ("running", "node2", 1, 2, 0.4)
    assert (row.beat is not None, row.left_s) == (True, (1000 - 250) * 32 / 64)
    long_ago = now - 7200
    lives[1]["time"] = long_ago
    (trial.folder / "lives.json").write_text(json.dumps(lives))
    for name in ("heartbeat.json", "metrics.jsonl"):
        os.utime(trial.folder / name, (long_ago, long_ago))
    beat(trial, 3, 50, long_ago)
    row = trial_status(trial, None, {})
    assert (row.status, row.note) == ("interrupted", "no sign of life for 2 h 00 min")


@pytest.mark.parametrize(
    ("state", "job_id", "cluster", "alive"),
    [
        ({"status": "running", "pid": 7}, "5", "local", True),
        ({"status": "running", "pid": 9}, "7", "local", True),
        ({"status": "running", "pid": 9}, "5", "local", False),
        ({"status": "running", "pid": 7, "slot": 1}, "5", "local", True),
        ({"status": "running", "pid": 9, "slot": 1}, "7", "local", False),  # another worker's job goes on
        ({"status": "interrupted", "pid": 7}, "5", "local", True),
        ({"status": "failed", "pid": 7}, "5", "local", False),
        ({"status": "running", "host": "elsewhere"}, "5", "local", True),
        ({"status": "interrupted", "host": "elsewhere"}, "5", "local", False),
        ({"status": "running", "pid": os.getpid()}, "5", "debug", True),
        ({"status": "interrupted", "pid": os.getpid()}, "5", "debug", False),
        ({"status": "running", "pid": 0}, "5", "debug", False),
        ({"status": ""}, "7", "local", True),
        ({"status": ""}, "5", "local", False),
    ],
)
def test_a_job_of_this_machine_lives_by_its_processes(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], job_id: str, cluster: Any, alive: bool
) -> None:
    monkeypatch.setattr(module, "runs_trials", lambda pid: pid == 7)
    if state["status"]:
        state_of(trial, job_id=job_id, **state)
    row = trial_status(trial, Submission(trial.id, job_id, cluster, f"{job_id}_0_log.out"), {})
    assert (row.status == "running") == alive
