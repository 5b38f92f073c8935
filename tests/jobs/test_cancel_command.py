"""What `jobs/cancel.py` asks, whom it ends by which way, and what it says of what came of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.cancel import main
from jobs.runs.trial import Submission, Sweep
from jobs.state.observed import Observed
from jobs.state.trial_status import TrialStatus
from shards.command import NOT_KNOWN, OK, WRONG_USE, run_command
from tests.jobs.written_trials import sweep_of


@dataclass
class Lab:
    """A sweep of four trials, in the states that a test gives them before and after, and what the command had done."""

    sweep: Sweep
    before: list[TrialStatus] = field(default_factory=list)
    after: list[TrialStatus] = field(default_factory=list)
    done: list[tuple[str, Any]] = field(default_factory=list)

    def add(self, status: str, cluster: str, after: str = "interrupted", **facts: Any) -> str:
        trial = self.sweep.trials[len(self.before)]
        submission = Submission(trial.id, f"{len(self.before) + 70}", cluster, "") if cluster else None
        self.before.append(TrialStatus(trial, status, submission=submission))
        self.after.append(TrialStatus(trial, after, submission=submission, **facts))
        return trial.id

    def looks(self) -> Iterator[list[TrialStatus]]:
        yield self.before
        yield self.after

    def cancel(self, *flags: str) -> int:
        return run_command(main, [str(self.sweep.folder), *flags])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(sweep_of(tmp_path / "runs" / "lab", 4))
    looks = lab.looks()

    def cancel_local(sweep: Sweep, rows: list[TrialStatus], whole: bool, kill: bool, grace_s: float) -> None:
        lab.done.append(("local", ([row.trial.id for row in rows], whole, kill, grace_s)))

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("jobs.cancel.observe", lambda sweep: Observed(sweep, tuple(next(looks))))
    monkeypatch.setattr("jobs.cancel.adopt_cut_off", lambda sweep: lab.done.append(("adopted", sweep.folder)))
    monkeypatch.setattr("jobs.cancel.cancel_slurm", lambda rows: lab.done.append(("slurm", [r.trial.id for r in rows])))
    monkeypatch.setattr("jobs.cancel.cancel_local", cancel_local)
    monkeypatch.setattr("jobs.cancel.forget", lambda folder: lab.done.append(("forgotten", folder)))
    return lab


def test_each_trial_is_ended_where_it_runs(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    on_slurm, here = lab.add("running", "slurm"), lab.add("queued", "local")
    lab.add("done", "slurm", after="done")
    lab.add("running", "")  # by somebody's own command
    assert lab.cancel("--yes") == OK
    folder = lab.sweep.folder
    local = ("local", ([here], True, False, 20.0))
    assert lab.done == [("adopted", folder), ("slurm", [on_slurm]), local, ("forgotten", folder)]
    out = capsys.readouterr().out
    assert "to cancel: 2\n" in re.sub(" +\n", "\n", out)
    assert "ended: 2 of 2" in out
    assert "still run" not in out


def test_named_trials_alone_and_at_once(lab: Lab) -> None:
    lab.add("running", "local")
    named = lab.add("running", "local")
    assert lab.cancel(named, "--yes", "--kill", "--grace-s", "3") == OK
    assert ("local", ([named], False, True, 3.0)) in lab.done


def test_where_nothing_runs_nobody_is_asked(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add("done", "slurm")
    assert lab.cancel() == OK
    assert [what for what, _ in lab.done] == ["adopted"]
    assert "nothing to cancel: none of them is queued or running" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "goes_on"),
    [("y", True), (" YES ", True), ("", False), ("n", False), ("yesterday", False), (None, False)],
)
@pytest.mark.parametrize("count", [1, 2])
def test_the_user_is_asked_and_only_a_yes_is_one(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str | None,
    goes_on: bool,
    count: int,
) -> None:
    prompts = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", ask)
    for _ in range(count):
        lab.add("running", "slurm")
    assert lab.cancel() == OK
    assert prompts == ["cancel 1 trial? [y/N] " if count == 1 else "cancel 2 trials? [y/N] "]
    assert ("slurm" in dict(lab.done)) == goes_on
    assert ("nothing was cancelled" in capsys.readouterr().out) != goes_on


def test_where_nobody_can_be_asked_nothing_is_cancelled(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    lab.add("running", "slurm")
    assert lab.cancel() == WRONG_USE
    assert [what for what, _ in lab.done] == ["adopted"]
    assert "add --yes to cancel 1 trial\n" in capsys.readouterr().err


def test_a_slurm_that_does_not_say_what_became_of_them(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add("running", "slurm", after="unknown", silence="squeue: Socket timed out")
    assert lab.cancel("--yes") == NOT_KNOWN
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("scancel was called")]
    assert "1 of 1 trials" in line
    assert "Socket timed out" in line


@pytest.mark.parametrize(
    ("clusters", "hints"),
    [
        (["slurm"], []),
        (["slurm", "local"], ["--kill"]),
        (["debug"], ["Ctrl-C"]),
        (["local", "debug"], ["--kill", "Ctrl-C"]),
    ],
)
def test_what_still_runs_is_saving(
    lab: Lab, capsys: pytest.CaptureFixture[str], clusters: list[str], hints: list[str]
) -> None:
    for cluster in clusters:
        lab.add("running", cluster, after="running")
    assert lab.cancel("--yes") == OK
    out = capsys.readouterr().out
    assert f"ended: 0 of {len(clusters)}" in out
    (line,) = [line for line in out.splitlines() if "still run" in line]
    assert f"jobs/status.py {lab.sweep.folder}" in line
    assert [hint for hint in ("--kill", "Ctrl-C") if hint in line] == hints
