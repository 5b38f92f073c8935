"""A trial's state, from what its folder, Slurm and this machine say, and those of trials that share a job."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.table import state_text
from jobs.state.trial_status import CUT_OFF, rows_of, trial_status, trial_statuses
from slurm.cluster import JobState
from tests.jobs.written_trials import beat, finish, on_slurm, sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 4)


@pytest.fixture
def trial(sweep: Sweep) -> Trial:
    return sweep.trials[3]


def test_a_label_says_where_it_lies_on_the_axes(trial: Trial) -> None:
    assert trial.label == "unet seed=3"


def write_log(trial: Trial) -> None:
    """The empty log of the job that `on_slurm` gives a trial."""
    path = trial.folder.parents[1] / "logs" / "x.out"
    path.parent.mkdir()
    path.touch()


def test_states_on_slurm(trial: Trial) -> None:
    assert trial_status(trial, None, {}).status == "planned"
    row = trial_status(trial, *on_slurm(trial, "PENDING", "Priority"))
    assert (row.status, row.note) == ("queued", "Priority")
    assert trial_status(trial, *on_slurm(trial, "RUNNING")).status == "running"
    assert trial_status(trial, *on_slurm(trial, "UNKNOWN")).status == "unknown"  # not knowing is not over
    assert trial_status(trial, *on_slurm(trial, "MISSING")).status == "interrupted"
    row = trial_status(trial, *on_slurm(trial, "FAILED"))
    assert (row.status, row.cause) == ("failed", "unseen_folder")  # nor is there a log
    write_log(trial)
    row = trial_status(trial, *on_slurm(trial, "FAILED"))
    assert (row.status, row.cause) == ("failed", "launch")
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))
    assert trial_status(trial, *on_slurm(trial, "UNKNOWN")).status == "unknown"
    row = trial_status(trial, *on_slurm(trial, "NODE_FAIL"))
    assert (row.status, row.cause) == ("interrupted", "node_failure")
    assert "node1 failed" in row.note
    trial.write_state(TrialState("failed", error="KeyError: x", host="node1", job_id="12_0"))
    for state in ("FAILED", "UNKNOWN", "RUNNING"):  # its own last word holds
        row = trial_status(trial, *on_slurm(trial, state))
        assert (row.status, row.cause, row.note, row.host) == ("failed", "code", "KeyError: x", "node1")


def test_a_silent_trial_is_stalled_only_where_slurm_says_that_it_runs(trial: Trial) -> None:
    long_ago = time.time() - 24 * 3600
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))
    state = json.loads((trial.folder / "state.json").read_text())
    (trial.folder / "state.json").write_text(json.dumps(state | {"time": long_ago}))
    for path in trial.folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert trial_status(trial, *on_slurm(trial, "RUNNING")).status == "stalled"
    row = trial_status(trial, *on_slurm(trial, "UNKNOWN", "no squeue on PATH"))
    assert (row.status, row.silence) == ("unknown", "no squeue on PATH")
    assert row.note == "Slurm does not answer; last sign of life 24 h 00 min ago"


def test_a_requeued_trial_is_queued_and_not_interrupted(trial: Trial) -> None:
    trial.write_state(TrialState("interrupted", error="saved", host="node1", job_id="12_0", restarts=2))
    row = trial_status(trial, *on_slurm(trial, "PENDING", "BeginTime"))
    assert (row.status, row.note, state_text(row)) == ("queued", "BeginTime", "queued: BeginTime, 2 restarts")
    assert trial_status(trial, *on_slurm(trial, "UNKNOWN")).status == "unknown"
    row = trial_status(trial, *on_slurm(trial, "CANCELLED"))
    assert (row.status, row.cause) == ("interrupted", "cancelled")
    assert trial_status(trial, *on_slurm(trial, "PREEMPTED")).status == "queued"
    assert trial_status(trial, *on_slurm(trial, "PREEMPTED", source="sacct")).cause == "preempted"


def test_a_submission_that_was_cut_off_is_planned(trial: Trial) -> None:
    row = trial_status(trial, Submission(trial.id, "", "slurm", ""), {})
    assert (row.status, row.note) == ("planned", CUT_OFF)


def test_trials_of_one_job_wait_for_their_turn(sweep: Sweep) -> None:
    write_log(sweep.trials[0])
    first, second = sweep.trials[:2]
    submission, jobs = on_slurm(first, "RUNNING")
    first.write_state(TrialState("failed", error="KeyError: x", host="node1", job_id="12_0"))
    assert trial_status(first, submission, jobs, shared=True).status == "failed"
    row = trial_status(second, replace(submission, trial=second.id), jobs, shared=True)
    assert (row.status, row.note) == ("queued", "waits for its turn in its job")
    row = trial_status(second, replace(submission, trial=second.id), on_slurm(second, "FAILED")[1], shared=True)
    assert row.status == "interrupted"
    assert "before its turn" in row.note


def in_one_job(sweep: Sweep, job_id: str = "12_0") -> None:
    sweep.add_submissions([Submission(trial.id, job_id, "slurm", "x.out") for trial in sweep.trials])


def statuses(sweep: Sweep, job: JobState) -> list[str]:
    return [row.status for row in rows_of(sweep, sweep.submissions(), {"12_0": job})]


def test_each_trial_of_a_job_has_a_state_of_its_own(sweep: Sweep) -> None:
    """Four trials, one after the other in one job, which is requeued when the third has begun."""
    in_one_job(sweep)
    first, second, third, _ = sweep.trials
    waiting, running = JobState("PENDING", "Priority", "", "squeue"), JobState("RUNNING", "", "node1", "squeue")
    assert statuses(sweep, waiting) == ["queued"] * 4
    assert statuses(sweep, running) == ["queued"] * 4  # its processes start
    first.write_state(TrialState("running", host="node1", job_id="12_0"))
    assert statuses(sweep, running) == ["running", "queued", "queued", "queued"]
    finish(first)
    second.write_state(TrialState("failed", error="KeyError: x", host="node1", job_id="12_0"))
    third.write_state(TrialState("running", host="node1", job_id="12_0"))
    assert statuses(sweep, running) == ["done", "failed", "running", "queued"]
    assert statuses(sweep, waiting) == ["done", "failed", "queued", "queued"]
    third.write_state(TrialState("interrupted", error="saved", host="node1", job_id="12_0"))
    second.write_state(TrialState("running", host="node1", job_id="12_0", restarts=1))  # has no result: tried once more
    assert statuses(sweep, running) == ["done", "running", "queued", "queued"]
    rows = rows_of(sweep, sweep.submissions(), {"12_0": running})
    assert [row.note for row in rows[2:]] == ["waits for its turn in its job"] * 2
    assert statuses(sweep, JobState("CANCELLED", "", "", "sacct")) == ["done"] + ["interrupted"] * 3


def test_only_the_latest_running_trial_of_a_job_counts_as_running(sweep: Sweep) -> None:
    """After a power cut the third had no time to say that it stopped, and its job begins with the second again."""
    in_one_job(sweep)
    finish(sweep.trials[0])
    running = JobState("RUNNING", "", "node1", "squeue")
    for place in (2, 1):
        sweep.trials[place].write_state(TrialState("running", host="node1", job_id="12_0"))
        beat(sweep.trials[place], 4, 60, time.time())
        time.sleep(0.01)
    rows = rows_of(sweep, sweep.submissions(), {"12_0": running})
    assert [row.status for row in rows] == ["done", "running", "queued", "queued"]
    assert (rows[2].note, rows[2].beat, rows[2].left_s) == ("waits for its turn in its job", None, None)
    assert rows[1].beat is not None


def test_as_many_trials_of_a_job_run_as_train_at_once(sweep: Sweep) -> None:
    """After a power cut the first had no time to say that it stopped, and the other two were taken before it."""
    in_one_job(sweep)
    for slot, place in ((2, 0), (1, 1), (2, 2)):
        state = {"host": "node1", "job_id": "12_0", "slot": slot, "at_once": 2}
        sweep.trials[place].write_state(TrialState("running", **state))
        time.sleep(0.01)
    assert statuses(sweep, JobState("RUNNING", "", "node1", "squeue")) == ["queued", "running", "running", "queued"]


def test_states_on_this_machine(trial: Trial, process: subprocess.Popen[bytes]) -> None:
    mine = Submission(trial.id, str(process.pid), "local", "x.out")
    gone, foreign = replace(mine, job_id="999999999"), replace(mine, job_id=str(os.getpid()))
    trial.write_state(TrialState("running", host=socket.gethostname(), job_id=mine.job_id))
    assert trial_status(trial, mine, {}).status == "running"
    for other in (gone, foreign):  # a pid that another program was given
        trial.write_state(TrialState("running", host=socket.gethostname(), job_id=other.job_id))
        row = trial_status(trial, other, {})
        assert (row.status, row.cause) == ("interrupted", "killed")
    # its controller was killed, its rank 0 was not
    trial.write_state(TrialState("running", host=socket.gethostname(), job_id=gone.job_id, pid=process.pid))
    assert trial_status(trial, gone, {}).status == "running"
    trial.write_state(TrialState("running", host="another", job_id=gone.job_id))
    assert trial_status(trial, gone, {}).status == "running"
    trial.write_state(TrialState("running", host=socket.gethostname(), job_id="DEBUG_1", pid=os.getpid()))
    assert trial_status(trial, Submission(trial.id, "DEBUG_1", "debug", ""), {}).status == "running"


def test_a_result_of_another_version_does_not_hide_the_other_trials(sweep: Sweep) -> None:
    (sweep.trials[0].folder / "result.json").write_text("{}")
    sweep.add_submissions([Submission(sweep.trials[0].id, "999999999", "local", "")])
    finish(sweep.trials[1])
    rows = trial_statuses(sweep)
    assert [row.status for row in rows] == ["failed", "done", "planned", "planned"]
    assert "another version" in rows[0].note


@pytest.mark.parametrize("word", ["SUSPENDED", "STOPPED"])
def test_a_job_that_slurm_holds_is_not_stalled(trial: Trial, word: str) -> None:
    """It gives no sign of life for as long as Slurm likes."""
    trial.write_state(TrialState("running", host="node1", job_id="12_0"))
    old = json.loads((trial.folder / "state.json").read_text()) | {"time": time.time() - 1e6}
    (trial.folder / "state.json").write_text(json.dumps(old))
    row = trial_status(trial, *on_slurm(trial, word))
    assert (row.status, row.note) == ("running", f"{word.lower()} by Slurm")
    assert trial_status(trial, *on_slurm(trial, "RUNNING")).status == "stalled"


def test_a_trial_of_the_launcher_itself_lives_as_long_as_its_process(trial: Trial) -> None:
    submission = Submission(trial.id, "12", "debug", "x.out")
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid, status in ((os.getpid(), "running"), (ended.pid, "interrupted"), (0, "interrupted")):
        trial.write_state(TrialState("running", host=socket.gethostname(), job_id="12", pid=pid))
        assert trial_status(trial, submission, {}).status == status, pid
