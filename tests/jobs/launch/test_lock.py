"""One launcher at a time works on a sweep, and what one that failed may have left in the queue."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from jobs.launch.lock import LauncherAtWork, has_begun, launcher_lock
from jobs.runs.trial import Submission
from shards.command import Unavailable
from tests.jobs.written_trials import sweep_of


def test_a_second_launcher_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "my lab"
    folder.mkdir()
    with launcher_lock(folder):
        with pytest.raises(LauncherAtWork) as refused, launcher_lock(folder):
            pytest.fail("two at once")
        look = f"python jobs/status.py '{folder}'"
        assert str(refused.value) == f"another launcher is at work on {folder}: see `{look}`"
    with pytest.raises(KeyError), launcher_lock(folder):
        raise KeyError
    with launcher_lock(folder):  # also after one that failed
        pass


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO])
def test_the_folder_of_somebody_else_is_told_and_other_troubles_are_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(lock: object) -> None:
        raise OSError(code, "a reason")

    monkeypatch.setattr("jobs.launch.lock.FileLock.acquire", fail)
    with pytest.raises(OSError if code == errno.EIO else ValueError) as refused, launcher_lock(tmp_path):
        pytest.fail("it has no lock")
    told = f"{tmp_path} cannot be written (a reason): only its owner submits and cancels its trials; "
    assert str(refused.value).startswith(told) is (code != errno.EIO)


@pytest.mark.parametrize(
    ("jobs", "error", "begun"),
    [
        ([], ValueError("refused"), False),
        ([], Unavailable("no answer"), False),
        ([""], ValueError("refused"), False),
        ([""], Unavailable("no answer"), True),  # the answer may be lost, and the job there
        ([""], KeyboardInterrupt(), True),
        (["", "7"], ValueError("refused"), True),  # the first array was taken
    ],
)
def test_a_sweep_has_begun_where_jobs_may_be_somewhere(
    tmp_path: Path, jobs: list[str], error: BaseException, begun: bool
) -> None:
    assert not has_begun(tmp_path / "lab", Unavailable("before anything was written"))
    sweep = sweep_of(tmp_path / "lab", 2)
    sweep.add_submissions(
        Submission(trial.id, job, "slurm", "") for trial, job in zip(sweep.trials, jobs, strict=False)
    )
    assert has_begun(sweep.folder, error) is begun
