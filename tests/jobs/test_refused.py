"""What sbatch refuses leaves no trace of a submission: nothing was cut off, and an earlier job's end is still told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs import status
from jobs.launch.journal import cut_off_submissions
from jobs.launch.submit import submit_trials
from jobs.runs.launch import Launch
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from jobs.state.trial_status import CUT_OFF, trial_statuses
from shards.cause import Cause
from shards.command import run_command
from slurm.resources import Resources
from tests.jobs.written_trials import sweep_of

LAUNCH = Launch("slurm", Resources(gpus_per_node=0), 0, 1)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two trials; the first failed in an earlier job."""
    sweep = sweep_of(tmp_path / "runs" / "lab", 2)
    sweep.add_submissions([Submission(sweep.trials[0].id, "7", "slurm", "")])
    sweep.trials[0].write_state(TrialState("failed", error="a NaN", cause=Cause.NAN, host="node1", job_id="7"))
    return sweep


def sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """An sbatch that refuses with these words, and a squeue that knows no job."""
    folder.mkdir(exist_ok=True)
    for name, script in (
        ("sbatch", f"echo 'sbatch: error: {words}' >&2; exit 1"),
        ("squeue", "true"),
        ("srun", "true"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")


def test_a_refusal_is_no_cut_off_submission(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sbatch(tmp_path / "bin", monkeypatch, "Invalid account or account/partition combination specified")
    with pytest.raises(ValueError, match=r"sbatch refused the job: Invalid account.*give another --account"):
        submit_trials(LAUNCH, sweep, sweep.trials)
    assert cut_off_submissions(sweep) == []
    first, second = trial_statuses(sweep)
    assert (first.status, first.cause, second.status, second.note) == ("failed", "nan", "planned", "")
    assert run_command(status.main, [str(sweep.folder)]) == 3
    assert CUT_OFF not in capsys.readouterr().out


def test_a_limit_that_filled_up_meanwhile_is_no_cut_off_submission(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch(tmp_path / "bin", monkeypatch, "QOSMaxSubmitJobPerUserLimit")
    text = (tmp_path / "bin" / "sbatch").read_text()
    (tmp_path / "bin" / "sbatch").write_text(text.replace("echo", '[ "$1" = --test-only ] && exit 0; echo'))
    assert submit_trials(LAUNCH, sweep, sweep.trials).left == sweep.trials
    assert cut_off_submissions(sweep) == []


def test_what_was_taken_back_leaves_other_announcements(sweep: Sweep) -> None:
    first, second = (trial.id for trial in sweep.trials)
    sweep.add_submissions(
        [Submission(first, "", "slurm", "", "petseg:a", 0), Submission(second, "", "slurm", "", "petseg:b", 0)]
    )
    sweep.withdraw_intent("petseg:a")
    assert {name: one.job_id for name, one in sweep.submissions().items()} == {first: "7", second: ""}
