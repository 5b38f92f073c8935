"""Which jobs are ended by which signal, and what Slurm's refusals mean."""

from __future__ import annotations

import signal
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch import cancel
from jobs.launch.cancel import IDS_PER_CALL, cancel_local, cancel_slurm
from jobs.launch.lock import LauncherAtWork, launcher_lock
from jobs.runs.trial import Submission, Trial
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import TrialStatus
from tests.jobs.written_trials import sweep_of


def row(number: int, job_id: str) -> TrialStatus:
    return TrialStatus(
        Trial(str(number), {}, Path("none")), "running", submission=Submission(str(number), job_id, "slurm", "")
    )


def test_each_job_is_named_once_and_no_call_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(cancel.patience, "call", called.append)
    rows = [row(number, f"12_{number // 2}") for number in range(2 * IDS_PER_CALL + 2)]  # two trials to a job
    cancel_slurm([*rows, TrialStatus(Trial("planned", {}, Path("none")), "planned")])
    assert [words[0] for words in called] == ["scancel", "scancel"]
    assert [len(words) - 1 for words in called] == [IDS_PER_CALL, 1]
    assert [job for words in called for job in words[1:]] == [f"12_{number}" for number in range(IDS_PER_CALL + 1)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (subprocess.CalledProcessError(1, "scancel", "", "scancel: error: Invalid job id 12\n"), ""),  # it has ended
        (subprocess.CalledProcessError(1, "scancel", "", "scancel: error: Access denied\n"), "scancel: Access denied"),
        (subprocess.CalledProcessError(7, "scancel", "", ""), "scancel: exit code 7"),
        (FileNotFoundError(), "no scancel on PATH: go to a login node of the cluster"),
    ],
)
def test_what_scancel_refuses_is_told(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(command: list[str]) -> None:
        raise error

    monkeypatch.setattr(cancel.patience, "call", call)
    if not told:
        cancel_slurm([row(1, "12")])
        return
    with pytest.raises(OSError, match=f"^{told}$"):
        cancel_slurm([row(1, "12")])


def test_a_refusal_hides_behind_no_other_complaint_and_keeps_no_job_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def call(command: list[str]) -> None:
        called.append(command)
        if len(called) == 1:
            text = "scancel: error: Invalid job id 12\nscancel: error: Kill job error on job id 13: Access denied\n"
            raise subprocess.CalledProcessError(1, "scancel", "", text)

    monkeypatch.setattr(cancel.patience, "call", call)
    with pytest.raises(OSError, match=r"^scancel: Kill job error on job id 13: Access denied$"):
        cancel_slurm([row(number, str(number)) for number in range(IDS_PER_CALL + 1)])
    assert [len(words) - 1 for words in called] == [IDS_PER_CALL, 1]


@dataclass
class Processes:
    """Controllers 11 and 12, whose launcher is 5; rank 23 has lost its controller 13."""

    ours: set[int] = field(default_factory=lambda: {11, 12, 21, 22, 23})
    sent: list[tuple[int, str]] = field(default_factory=list)

    def send(self, pid: int, number: signal.Signals) -> None:
        self.sent.append((pid, number.name))

    def install(self, monkeypatch: pytest.MonkeyPatch, launcher: bool = True) -> None:
        faked: dict[str, Any] = {
            "works_for": lambda pid, logs: pid in self.ours,
            "parent_of": lambda pid: 5,
            "is_launcher": lambda pid: launcher and pid == 5,
            "_group": lambda pid: pid - 10,
        }
        for name, function in faked.items():
            monkeypatch.setattr(cancel, name, function)
        monkeypatch.setattr(cancel.os, "kill", self.send)
        monkeypatch.setattr(cancel.os, "killpg", lambda pid, number: self.send(-pid, number))


@pytest.mark.parametrize(
    ("whole", "kill", "launcher", "sent"),
    [
        (True, False, True, {(5, "SIGTERM")}),  # it ends its trials, and starts no more
        (True, False, False, {(11, "SIGTERM"), (12, "SIGTERM"), (23, "SIGTERM")}),
        (False, False, True, {(11, "SIGTERM"), (12, "SIGTERM"), (23, "SIGTERM")}),  # the others of the sweep go on
        (False, True, True, {(-11, "SIGKILL"), (-12, "SIGKILL"), (-13, "SIGKILL")}),
        (True, True, True, {(5, "SIGTERM"), (-11, "SIGKILL"), (-12, "SIGKILL"), (-13, "SIGKILL")}),
    ],
)
def test_which_processes_of_this_machine_get_which_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool, kill: bool, launcher: bool, sent: set[tuple[int, str]]
) -> None:
    """A rank that has lost its controller gets the signal itself."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 3)
    rows = []
    for number, trial in enumerate(sweep.trials, start=11):
        trial.write_state(TrialState("running", job_id=str(number), pid=number + 10))
        submission = Submission(trial.id, str(number), "local", "")
        rows.append(TrialStatus(trial, "running", submission=submission))
    processes = Processes()
    processes.install(monkeypatch, launcher)
    cancel_local(sweep, rows, whole, kill, grace_s=0.0)
    assert set(processes.sent) == sent
    assert len(processes.sent) == len(sent)


def test_processes_that_are_not_ours_get_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid is given away again once its process has ended."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 1)
    (trial,) = sweep.trials
    trial.write_state(TrialState("running", job_id="11", pid=21))
    processes = Processes(ours=set())
    processes.install(monkeypatch, launcher=False)
    rows = [TrialStatus(trial, "running", submission=Submission(trial.id, "11", "local", ""))]
    for kill in (False, True):
        cancel_local(sweep, rows, whole=True, kill=kill, grace_s=0.0)
    assert processes.sent == []


def local_row(trial: Trial, job_id: str) -> TrialStatus:
    return TrialStatus(trial, "running", submission=Submission(trial.id, job_id, "local", ""))


def test_a_cancel_waits_until_the_processes_are_gone_or_its_grace_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = sweep_of(tmp_path / "runs" / "lab", 1).trials
    sweep = sweep_of(tmp_path / "runs" / "other", 0)
    trial.write_state(TrialState("running", job_id="11", pid=21))
    processes, now, naps = Processes(), 100.0, list[float]()
    processes.install(monkeypatch)

    def sleep(seconds: float) -> None:
        nonlocal now
        naps.append(seconds)
        now += 1.0
        if len(naps) == 2:
            processes.ours -= {11}  # its rank still saves
        if len(naps) == ends_after:
            processes.ours.clear()

    monkeypatch.setattr(cancel, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    ends_after = 4
    cancel_local(sweep, [local_row(trial, "11")], whole=False, kill=False, grace_s=60.0)
    assert naps == [cancel.POLL_S] * 4
    processes.ours, ends_after = {11, 21}, 99
    naps.clear()
    cancel_local(sweep, [local_row(trial, "11")], whole=False, kill=False, grace_s=3.0)
    assert len(naps) == 3


def test_trials_without_a_process_here_get_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One was never submitted, one has a job of Slurm's, one the state of an earlier job, one has no pid."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 4)
    planned, on_slurm, later, silent = sweep.trials
    planned.write_state(TrialState("running", job_id="11", pid=21))
    later.write_state(TrialState("running", job_id="11", pid=21, host="elsewhere"))
    silent.write_state(TrialState("running", job_id="13", pid=0))
    processes = Processes(ours={0, 12, 21, 22})
    processes.install(monkeypatch, launcher=False)
    jobs = ((on_slurm, "7_1"), (later, "12"), (silent, "13"))
    rows = [TrialStatus(planned, "running"), *(local_row(trial, job) for trial, job in jobs)]
    cancel_local(sweep, rows, whole=True, kill=False, grace_s=0.0)
    assert processes.sent == [(12, "SIGTERM")]


def test_a_trial_of_another_machine_is_cancelled_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 2)
    here, there = sweep.trials
    here.write_state(TrialState("running", job_id="11", pid=21, host=cancel.HERE))
    there.write_state(TrialState("running", job_id="12", pid=22, host="node9"))
    processes = Processes()
    processes.install(monkeypatch)
    with pytest.raises(ValueError, match=rf"^{there.id} runs on node9: cancel it there$"):
        cancel_local(sweep, [local_row(here, "11"), local_row(there, "12")], whole=True, kill=False, grace_s=0.0)
    assert processes.sent == []


def test_a_process_that_is_gone_has_no_group_and_needs_no_signal() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert cancel._group(process.pid) == 0
    cancel._signal([process.pid], signal.SIGTERM)
    cancel._kill_groups([process.pid])


@pytest.mark.parametrize(("cut_off", "busy"), [(True, False), (False, False), (True, True)])
def test_jobs_that_were_being_submitted_are_looked_for_unless_their_launcher_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_off: bool, busy: bool
) -> None:
    sweep = sweep_of(tmp_path / "lab", 1)
    sweep.add_submissions([Submission(sweep.trials[0].id, "" if cut_off else "7", "slurm", "")])
    asked: list[bool] = []

    def reconcile(sweep: object) -> None:
        with pytest.raises(LauncherAtWork), launcher_lock(tmp_path / "lab"):
            pytest.fail("without the lock")
        asked.append(True)

    monkeypatch.setattr(cancel, "reconcile", reconcile)
    with launcher_lock(sweep.folder) if busy else nullcontext():
        cancel.adopt_cut_off(sweep)
    assert asked == [True] * (cut_off and not busy)
