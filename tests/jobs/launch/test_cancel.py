"""Which jobs are ended by which signal, and what Slurm's refusals mean."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.launch import cancel
from jobs.launch.cancel import IDS_PER_CALL, cancel_local, cancel_slurm
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
