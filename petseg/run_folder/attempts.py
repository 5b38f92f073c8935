"""The attempts at a run: how often it was started, where, and which of them may write.

A run that is requeued can have two processes that both believe they own it, if a node only lost its network. Each
attempt takes the next number in lives.json, and every write first looks whether that number is still the newest: the
number is a fencing token, and no clocks are compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from petseg.run_folder.checkout import CODE_NAME, running_code
from shards.cause import Cause
from shards.command import Failure, Interrupted
from shards.files import NotRegular, build, read_json, write_whole

ATTEMPTS_NAME = "lives.json"
KEPT_ATTEMPTS = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    number: int  # from 1
    host: str
    job_id: str
    code: str  # hash of the code that ran, empty if it ran from the working tree
    first_step: int  # optimizer steps that were done before
    time: float  # seconds since 1970, for people
    world_size: int = 0  # processes; 0 = an earlier version did not say
    commit: str = ""  # of git that the code came from, empty if it came from no checkout
    changed: bool = False  # the checkout had changes beside the commit
    remote: str = ""  # address of the checkout's origin


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts at a run, oldest first; raises ValueError that names a file that is damaged."""
    path = folder / ATTEMPTS_NAME
    try:
        rows = read_json(path)
        if not isinstance(rows, list):
            raise TypeError(f"a {type(rows).__name__} where a list is expected")
        return [build(Attempt, row) for row in rows]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, TypeError, NotRegular) as error:
        raise ValueError(
            f"{path} is damaged ({error}): see that no other process runs in {folder}, then delete the file and start "
            "the run again"
        ) from None


def begin_attempt(folder: Path, first_step: int, max_without_progress: int = 0, world_size: int = 0) -> Attempt:
    """Take the next number and write it down; the attempts before may write no more. Says so if it has other code.

    max_without_progress: so many attempts in a row may start at the same step, 0 = any number. Raises Failure at more:
    a run that is requeued again and again without finishing a step costs a cluster and never ends.
    """
    attempts = read_attempts(folder)
    stuck = attempts[-max_without_progress:] if max_without_progress else []
    if stuck and len(stuck) == max_without_progress and all(attempt.first_step == first_step for attempt in stuck):
        hosts = ", ".join(dict.fromkeys(attempt.host for attempt in stuck))
        raise Failure(
            f"{folder} made no progress in {len(stuck)} starts, all at step {first_step} (on {hosts}): see its "
            f"log, and delete {folder / ATTEMPTS_NAME} to try again",
            Cause.KILLED,
        )
    came_from = running_code()
    attempt = Attempt(
        number=attempts[-1].number + 1 if attempts else 1,
        host=socket.gethostname(),
        job_id=os.environ.get("SLURM_JOB_ID", ""),
        code=os.environ.get(CODE_NAME, ""),
        first_step=first_step,
        time=time.time(),
        world_size=world_size,
        commit=came_from.commit,
        changed=came_from.changed,
        remote=came_from.remote,
    )
    rows = [asdict(row) for row in [*attempts, attempt][-KEPT_ATTEMPTS:]]
    write_whole(folder / ATTEMPTS_NAME, json.dumps(rows, indent=2) + "\n")
    if attempts and attempts[-1].code != attempt.code:
        logger.warning(
            "%s goes on with %s, where start %d on %s ran %s: its numbers are of both",
            folder, _code_in_words(attempt), attempts[-1].number, attempts[-1].host, _code_in_words(attempts[-1]),
        )  # fmt: skip
    return attempt


def _code_in_words(attempt: Attempt) -> str:
    return f"code {attempt.code}" if attempt.code else "the code of the working tree"


def require_newest(folder: Path, attempt: Attempt) -> None:
    """Raises Interrupted if a later attempt at the run has begun: this one is to stop, and to write nothing."""
    newest = read_attempts(folder)[-1:]
    if newest and newest[0].number > attempt.number:
        raise Interrupted(
            f"{folder} goes on in another process (start {newest[0].number} on {newest[0].host}): this one, start "
            f"{attempt.number}, stops and writes nothing more"
        )
