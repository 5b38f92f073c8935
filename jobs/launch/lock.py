"""Lets one launcher at a time work on a sweep, and tells whether one that failed has submitted jobs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import SWEEP_NAME
from shards.command import typed

NOT_MINE = (errno.EACCES, errno.EPERM, errno.EROFS)


class LauncherAtWork(ValueError):
    """Another launcher works on the sweep."""


@contextmanager
def launcher_lock(folder: Path) -> Iterator[None]:
    """One launcher at a time; raises LauncherAtWork if there is another."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        look = typed("jobs/status.py", folder)
        raise LauncherAtWork(f"another launcher is at work on {folder}: see `{look}`") from None
    except OSError as error:
        if error.errno not in NOT_MINE:
            raise
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}): only its owner submits and cancels its trials; give your "
            "own sweep another --name or --runs-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def has_begun(folder: Path, error: BaseException) -> bool:
    """Whether jobs of the sweep may be somewhere although its launcher ended with this error.

    Without a job's id its submission may have been cut off, unless the error says that it was refused.
    """
    noted = load_sweep(folder).all_submissions() if (folder / SWEEP_NAME).exists() else []
    return any(submission.job_id for submission in noted) or bool(noted and not isinstance(error, ValueError))
