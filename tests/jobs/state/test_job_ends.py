"""Why trials ended is still told when Slurm has forgotten their jobs."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from jobs.state import job_ends, slurm_states
from jobs.state.job_ends import ENDS_NAME, JobEnd, forgotten_jobs, note_ends, read_ends, with_noted
from jobs.state.slurm_states import ask, forget
from jobs.state.trial_status import quick_trial_statuses, trial_statuses
from slurm.cluster import JobState
from tests.jobs.written_trials import finish, sweep_of

Says = Callable[..., None]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three trials on Slurm whose jobs wrote no more than that they run."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 3)
    for place, trial in enumerate(sweep.trials):
        sweep.add_submissions([Submission(trial.id, f"12_{place}", "slurm", "")])
        trial.write_state(TrialState("running", host="node1", job_id=f"12_{place}"))
    return sweep


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """What squeue and sacct answer from here on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")

    def change(squeue: str = "", sacct: str = "") -> None:
        for name, text in (("squeue", squeue), ("sacct", sacct)):
            lines = "".join(f"echo '{line}'\n" for line in text.split())
            (folder / name).write_text(f"#!/bin/sh\n{lines}")
            (folder / name).chmod(0o755)

    return change


def test_a_trial_that_began_when_the_end_was_noted_keeps_that_end() -> None:
    missing, failed = JobState("MISSING", "", "", "squeue"), JobState("FAILED", "", "node1", "squeue")
    known = {"12": JobEnd(failed, 100.0)}
    assert with_noted({"12": missing}, known, {"12": 100.0}) == {"12": failed}
    assert with_noted({"12": missing}, known, {"12": 100.5}) == {"12": missing}


FAILED, OOM = JobState("FAILED", "NonZeroExitCode", "node1", "squeue"), JobState("OUT_OF_MEMORY", "x", "n", "squeue")


def test_an_end_is_read_as_it_was_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_ends.time, "time", lambda: 50.0)
    full = JobState("FAILED", "why", "node1", "sacct", "0:9")
    running, missing = JobState("RUNNING", "", "", "squeue"), JobState("MISSING", "", "", "squeue")
    note_ends(tmp_path, {}, {"1": full, "2": running, "3": missing, "4": OOM})
    ends = {"1": JobEnd(full, 50.0), "4": JobEnd(OOM, 50.0)}
    assert read_ends(tmp_path) == ends
    note_ends(tmp_path, ends, {"1": full, "4": OOM})
    assert len((tmp_path / ENDS_NAME).read_text().splitlines()) == 2  # nothing is new


@pytest.mark.parametrize(
    ("before", "after", "is_noted"),
    [
        (FAILED, FAILED, False),
        (FAILED, replace(FAILED, reason="another word"), False),
        (FAILED, replace(FAILED, exit_code="1:0"), True),
        (replace(FAILED, exit_code="0:9"), replace(FAILED, exit_code="1:0"), False),
        (replace(FAILED, exit_code="0:9"), FAILED, False),
        (FAILED, OOM, True),
    ],
)
def test_an_end_is_noted_again_where_it_tells_more(
    tmp_path: Path, before: JobState, after: JobState, is_noted: bool
) -> None:
    note_ends(tmp_path, {"1": JobEnd(before, 1.0)}, {"1": after})
    assert (tmp_path / ENDS_NAME).exists() is is_noted
    assert [end.state for end in read_ends(tmp_path).values()] == [after] * is_noted


def test_a_job_that_slurm_knows_keeps_its_state(tmp_path: Path) -> None:
    missing, running = JobState("MISSING", "", "", "squeue"), JobState("RUNNING", "", "", "squeue")
    known = {"1": JobEnd(FAILED, 5.0), "2": JobEnd(FAILED, 5.0)}
    states = {"1": running, "2": missing, "3": missing}
    assert with_noted(states, known, {}) == {"1": running, "2": FAILED, "3": missing}
    assert forgotten_jobs(states, known) == {"2"}


def causes(sweep: Sweep) -> list[str]:
    return [row.cause for row in trial_statuses(sweep)]


def test_causes_outlive_slurms_memory(sweep: Sweep, says: Says) -> None:
    says("12_0|OUT_OF_MEMORY|OutOfMemory|node1 12_1|TIMEOUT|TimeLimit|node1 12_2|NODE_FAIL|NodeDown|node1")
    seen = causes(sweep)
    assert seen == ["host_memory", "timeout", "node_failure"]
    says()
    assert causes(sweep) == seen
    assert [row.cause for row in quick_trial_statuses(sweep)[0]] == seen
    assert len((sweep.folder / ENDS_NAME).read_text().splitlines()) == 3


def test_without_a_look_in_time_nothing_is_known(sweep: Sweep, says: Says) -> None:
    says()
    assert causes(sweep) == ["unknown"] * 3
    assert not (sweep.folder / ENDS_NAME).exists()


def test_what_sacct_adds_is_noted_and_nothing_twice(sweep: Sweep, says: Says) -> None:
    finish(sweep.trials[1])
    finish(sweep.trials[2])
    says("12_0|FAILED|NonZeroExitCode|node1")
    causes(sweep)
    says(sacct="12_0|FAILED|node1|0:9")
    assert causes(sweep)[0] == "killed"
    says()
    assert causes(sweep)[0] == "killed"
    assert read_ends(sweep.folder)["12_0"].state.exit_code == "0:9"
    assert len((sweep.folder / ENDS_NAME).read_text().splitlines()) == 2


def test_a_job_that_was_requeued_since_ended_in_another_way(sweep: Sweep, says: Says) -> None:
    says("12_0|TIMEOUT|TimeLimit|node1")
    assert causes(sweep)[0] == "timeout"
    sweep.trials[0].write_state(TrialState("running", host="node2", job_id="12_0"))
    says()
    assert causes(sweep)[0] == "unknown"


def test_nothing_is_written_into_the_folder_of_somebody_else(
    sweep: Sweep, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_ends.os, "geteuid", lambda: sweep.folder.stat().st_uid + 1)
    says("12_0|OUT_OF_MEMORY|OutOfMemory|node1")
    assert causes(sweep)[0] == "host_memory"
    assert not (sweep.folder / ENDS_NAME).exists()


def test_no_link_is_followed_and_lines_cut_short_are_passed_over(sweep: Sweep, says: Says, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    (sweep.folder / ENDS_NAME).symlink_to(outside)
    says("12_0|OUT_OF_MEMORY|OutOfMemory|node1")
    assert causes(sweep)[0] == "host_memory"
    assert outside.read_text() == "mine\n"
    (sweep.folder / ENDS_NAME).unlink()
    (sweep.folder / ENDS_NAME).write_text('{"job_id": "12_1", "st\n7\n')
    assert causes(sweep)[0] == "host_memory"
    says()
    assert causes(sweep)[0] == "host_memory"
    (sweep.folder / ENDS_NAME).unlink()
    os.mkfifo(sweep.folder / ENDS_NAME)
    assert causes(sweep)[0] == "unknown"  # and nobody waits for a writer


def test_an_answer_of_before_a_change_is_not_kept(
    sweep: Sweep, says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher has asked squeue, which takes its time, when the jobs are cancelled."""
    says("12_0|RUNNING|None|node1")
    squeue = tmp_path / "bin" / "squeue"
    asked, go = tmp_path / "asked", tmp_path / "go"
    squeue.write_text(squeue.read_text() + f"touch {asked}\nwhile [ ! -e {go} ]; do sleep 0.05; done\n")
    watcher = threading.Thread(target=ask, args=(sweep.folder, ["12_0"]), kwargs={"timeout_s": 60.0})
    watcher.start()
    while not asked.exists():
        subprocess.run(["sleep", "0.05"], check=True)
    forget(sweep.folder)
    go.touch()
    watcher.join()
    says("12_0|CANCELLED|None|node1")
    assert ask(sweep.folder, ["12_0"]).states["12_0"].state == "CANCELLED"
    assert json.loads((sweep.folder / slurm_states.ANSWER_NAME).read_text())["states"]["12_0"]["state"] == "CANCELLED"
