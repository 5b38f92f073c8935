"""What `jobs/retry.py` does with jobs that Slurm holds, with nodes that failed, and where Slurm does not answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch.bad_nodes import BadNodes
from jobs.launch.retry import Decision
from jobs.retry import main, show
from jobs.runs.trial import Submission, Sweep
from jobs.state.observed import Observed
from jobs.state.triage import Diagnosis
from jobs.state.trial_status import TrialStatus
from jobs.state.waits import Wait
from shards.cause import Cause
from shards.command import INTERRUPTED, NOT_KNOWN, OK, WRONG_USE, run_command
from tests.jobs.written_trials import sweep_of

KILLED = Diagnosis(Cause.KILLED, "somebody or something killed it", True, "killed")
BUG = Diagnosis(Cause.CODE, "fix the code", False, "bug")
HELD = Wait("held", "JobHeldUser", "release it when it may start")
BUSY = "squeue: Socket timed out"


@dataclass
class Lab:
    """A sweep of four trials, each in the state that a test gives it, and what the command had done."""

    sweep: Sweep
    rows: list[TrialStatus] = field(default_factory=list)
    done: list[tuple[str, Any]] = field(default_factory=list)
    code: int = OK  # of the submission

    def add(self, status: str, **facts: Any) -> str:
        trial = self.sweep.trials[len(self.rows)]
        submission = Submission(trial.id, f"{len(self.rows) + 70}", "slurm", "")
        self.rows.append(TrialStatus(trial, status, submission=submission, **facts))
        return trial.id

    def retry(self, *flags: str) -> int:
        return run_command(main, [str(self.sweep.folder), *flags])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(sweep_of(tmp_path / "runs" / "lab", 4))

    def resubmit(folder: Path, trial_ids: list[str], overrides: Any, exclude: list[str], allow_pipe: bool) -> int:
        lab.done.append(("submitted", (trial_ids, exclude, allow_pipe)))
        return lab.code

    def bad_nodes(sweep: Sweep, rows: tuple[TrialStatus, ...]) -> BadNodes:
        assert len(rows) == len(lab.rows)  # of all trials, whichever are wanted
        return BadNodes(("node3", "node5"), ("node3 failed twice",))

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("jobs.retry.observe", lambda sweep: Observed(sweep, tuple(lab.rows)))
    monkeypatch.setattr("jobs.retry.bad_nodes", bad_nodes)
    monkeypatch.setattr("jobs.retry.release", lambda ids: lab.done.append(("released", ids)))
    monkeypatch.setattr("jobs.retry.forget", lambda folder: lab.done.append(("forgotten", folder)))
    monkeypatch.setattr("jobs.launch.submit.resubmit", resubmit)
    return lab


def test_held_jobs_are_released_and_nothing_is_submitted(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add("queued", wait=HELD)
    lab.add("failed", verdict=KILLED)
    assert lab.retry("--held") == OK
    assert lab.done == [("released", ["70"]), ("forgotten", lab.sweep.folder)]
    out = capsys.readouterr().out
    assert "0 to submit, 0 not, 1 to release" in out
    assert "node3" not in out
    (line,) = [line for line in out.splitlines() if "released" in line]
    shown = [cell.strip() for cell in line.strip("│┃ ").split("│")]
    assert shown == [lab.rows[0].trial.id, "unet seed=0", "JobHeldUser", "released, to start in its turn"]


def test_what_failed_is_submitted_and_what_a_failed_start_holds_is_released(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.add("queued", wait=Wait("failed_launch", "launch failed requeued held", "see sinfo"))
    failed = lab.add("failed", verdict=KILLED)
    lab.add("failed", verdict=BUG)
    lab.add("queued", wait=HELD)  # by somebody, who had a reason
    lab.code = INTERRUPTED
    assert lab.retry("--failed", "--exclude", "node9") == INTERRUPTED
    submitted = ([failed], ["node9", "node3", "node5"], False)
    assert lab.done == [("released", ["70"]), ("forgotten", lab.sweep.folder), ("submitted", submitted)]
    out = capsys.readouterr().out
    assert "1 to submit, 1 not, 1 to release" in out
    assert "node3 failed twice" in out
    assert "refused: fix the code" in out


def test_nodes_that_failed_are_used_on_demand(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    failed = lab.add("failed", verdict=KILLED)
    assert lab.retry("--failed", "--no-exclude", "--allow-pipe") == OK
    assert lab.done == [("submitted", ([failed], [], True))]
    out = capsys.readouterr().out
    assert out.splitlines()[0].rstrip() == "1 to submit, 0 not"
    assert "node3" not in out


@pytest.mark.parametrize(("code", "ends"), [(OK, NOT_KNOWN), (INTERRUPTED, INTERRUPTED)])
def test_trials_of_which_slurm_does_not_say_how_they_stand_are_left_alone(
    lab: Lab, capsys: pytest.CaptureFixture[str], code: int, ends: int
) -> None:
    failed = lab.add("failed", verdict=KILLED)
    lab.add("unknown", silence=BUSY)
    lab.code = code
    assert lab.retry("--failed") == ends
    assert [trials for _, (trials, *_) in lab.done] == [[failed]]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left alone: ")]  # unfolded
    assert "1 of 2 trials" in line
    assert BUSY in line


def test_a_dry_run_releases_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add("queued", wait=HELD)
    lab.add("failed", verdict=KILLED)
    assert lab.retry("--failed", "--held", "--dry-run") == OK
    assert "1 to submit, 0 not, 1 to release" in capsys.readouterr().out
    assert lab.done == []


def test_where_all_are_refused_the_next_step_is_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add("failed", verdict=BUG)
    assert lab.retry("--failed") == WRONG_USE
    captured = capsys.readouterr()
    assert "0 to submit, 1 not" in captured.out
    assert "add --even-so" in captured.err
    assert lab.done == []


def test_the_table_says_of_each_trial_what_is_done(lab: Lab) -> None:
    names = [lab.add("failed", verdict=KILLED) for _ in range(2)] + [lab.add("queued", wait=HELD)]
    names.append(lab.add("failed", verdict=BUG))
    changed, again, held, refused = lab.rows
    changes = {names[0]: {"train.accumulation_steps": 2, "train.seed": 8}}
    printed: list[Any] = []
    console: Any = SimpleNamespace(print=printed.append)
    show(Decision((changed, again), changes, ((refused, "fix the code"),), (held,)), console)
    (table,) = printed
    assert table.title == "2 to submit, 1 not, 1 to release"
    assert list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)) == [
        (
            names[0],
            changed.trial.label,
            "killed",
            "submitted again with train.accumulation_steps=2, train.seed=8",
        ),
        (names[1], again.trial.label, "killed", "submitted again as it is"),
        (names[2], held.trial.label, "JobHeldUser", "released, to start in its turn"),
        (names[3], refused.trial.label, "code", "refused: fix the code"),
    ]
    show(Decision((again,), {}, (), ()), console)
    assert printed[1].title == "1 to submit, 0 not"
