"""Jobs of a launcher that was killed while it submitted: adopted where they have their work, cancelled where not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from jobs.launch.journal import announce, cut_off_submissions, reconcile
from jobs.runs.trial import Submission, Sweep
from shards.command import Unavailable
from slurm.submission import revoked_file, short, work_file
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 3)


@pytest.fixture
def logs(sweep: Sweep) -> Path:
    folder = sweep.folder / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Slurm's commands; scancel notes what it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in(folder, "scancel", f'echo "$@" >> {folder}/cancelled')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def queue(folder: Path, *lines: str) -> None:
    """What squeue shows of this user's jobs: `JOB|NAME|COMMENT`."""
    stand_in(folder, "squeue", f"printf '%s\\n' {' '.join(repr(line) for line in lines)}")


def test_only_jobs_that_have_their_work_are_adopted(sweep: Sweep, logs: Path, bin_folder: Path) -> None:
    """The work of the first has its own name, that of the second is where submitit looks, that of the third is gone."""
    token = announce(sweep, [[trial] for trial in sweep.trials], range(3))
    work_file(logs, token, 0).touch()
    (logs / "7_1_submitted.pkl").touch()
    queue(bin_folder, *(f"7_{place}|petseg-lab-{short(token)}|(null)" for place in range(3)))
    reconcile(sweep)
    given = sweep.submissions()
    assert [given[trial.id].job_id for trial in sweep.trials] == ["7_0", "7_1", ""]
    assert given[sweep.trials[0].id].log == str(logs / "7_0_0_log.out")
    assert (bin_folder / "cancelled").read_text() == "7_2\n"
    assert not revoked_file(logs, token).exists()


def test_an_array_that_slurm_does_not_have_is_revoked(sweep: Sweep, logs: Path, bin_folder: Path) -> None:
    token = announce(sweep, [list(sweep.trials)], range(1))
    work_file(logs, token, 0).touch()
    queue(bin_folder, "8|petseg-lab-0123456789abcdef|petseg:0123456789abcdef")
    reconcile(sweep)
    assert [submission.job_id for submission in sweep.submissions().values()] == ["", "", ""]
    assert revoked_file(logs, token).exists()
    assert not (bin_folder / "cancelled").exists()


def test_an_array_that_comes_while_it_is_revoked_is_adopted(sweep: Sweep, logs: Path, bin_folder: Path) -> None:
    token = announce(sweep, [list(sweep.trials)], range(1))
    work_file(logs, token, 0).touch()
    revoked = revoked_file(logs, token)
    stand_in(bin_folder, "squeue", f"if [ -e {revoked} ]; then echo '9|petseg-lab|{token}'; fi")
    reconcile(sweep)
    assert [submission.job_id for submission in sweep.submissions().values()] == ["9"] * 3
    assert not revoked.exists()


def test_without_an_answer_nothing_is_revoked(sweep: Sweep, logs: Path, bin_folder: Path) -> None:
    token = announce(sweep, [list(sweep.trials)], range(1))
    stand_in(bin_folder, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(Unavailable):
        reconcile(sweep)
    assert not revoked_file(logs, token).exists()


def test_each_trial_of_an_array_is_noted_with_the_place_of_its_job(sweep: Sweep) -> None:
    """The second of two arrays: its places begin anew."""
    first, second, third = sweep.trials
    token = announce(sweep, [[], [first, second], [third]], range(1, 3))
    assert sweep.all_submissions() == [
        Submission(trial.id, "", "slurm", "", token, place) for trial, place in ((first, 0), (second, 0), (third, 1))
    ]
    assert announce(sweep, [[first]], range(1)) != token


def test_only_submissions_to_slurm_without_a_job_were_cut_off(sweep: Sweep, bin_folder: Path) -> None:
    first, second, third = (trial.id for trial in sweep.trials)
    sweep.add_submissions([Submission(first, "", "local", ""), Submission(second, "", "slurm", "", "petseg:1")])
    sweep.add_submissions([Submission(second, "7", "slurm", ""), Submission(third, "8", "slurm", "")])
    assert cut_off_submissions(sweep) == []
    stand_in(bin_folder, "squeue", f"touch {bin_folder}/asked")
    before = sweep.all_submissions()
    reconcile(sweep)
    assert sweep.all_submissions() == before
    assert not (bin_folder / "asked").exists()


def test_of_several_arrays_only_those_are_revoked_that_did_not_come(
    sweep: Sweep, logs: Path, bin_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is there, the second comes while it is revoked, the third never came."""
    tokens = [announce(sweep, [[trial]], range(1)) for trial in sweep.trials]
    for token in tokens:
        work_file(logs, token, 0).touch()
    here, late, _ = tokens
    script = f"echo '7|x|{here}'; if [ -e {revoked_file(logs, late)} ]; then echo '8|x|{late}'; fi"
    stand_in(bin_folder, "squeue", script)
    with caplog.at_level(logging.INFO):
        reconcile(sweep)
    given = sweep.submissions()
    assert [given[trial.id].job_id for trial in sweep.trials] == ["7", "8", ""]
    assert [given[trial.id].intent for trial in sweep.trials] == tokens
    assert [revoked_file(logs, token).exists() for token in tokens] == [False, False, True]
    assert caplog.messages == [
        f"{trial.id} was submitted as job {job} before its launcher ended"
        for trial, job in zip(sweep.trials, "78", strict=False)
    ]


def test_all_jobs_without_work_are_cancelled_at_once(
    sweep: Sweep, logs: Path, bin_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = announce(sweep, [[trial] for trial in sweep.trials], range(3))
    queue(bin_folder, *(f"7_{place}|x|{token}" for place in range(3)))
    with caplog.at_level(logging.INFO):
        reconcile(sweep)
    assert (bin_folder / "cancelled").read_text() == "7_0 7_1 7_2\n"
    assert caplog.messages == ["jobs 7_0, 7_1, 7_2 have nothing to run, because their launcher was killed: cancelled"]
    assert [one.job_id for one in sweep.submissions().values()] == ["", "", ""]


def test_a_job_that_did_not_come_hides_none_behind_it(sweep: Sweep, logs: Path, bin_folder: Path) -> None:
    token = announce(sweep, [[trial] for trial in sweep.trials], range(3))
    for place in range(3):
        work_file(logs, token, place).touch()
    queue(bin_folder, *(f"7_{place}|x|{token}" for place in (1, 2)))
    reconcile(sweep)
    assert [one.job_id for one in sweep.submissions().values()] == ["", "7_1", "7_2"]


def test_jobs_that_slurm_does_not_cancel_end_no_launcher(
    sweep: Sweep, logs: Path, bin_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They have nothing to run, and end by themselves."""
    token = announce(sweep, [[trial] for trial in sweep.trials], range(3))
    stand_in(bin_folder, "scancel", "echo 'scancel: error: Access denied' >&2; exit 1")
    queue(bin_folder, f"7_0|x|{token}")
    reconcile(sweep)
    assert capfd.readouterr().err == ""
