"""The attempts at a run: how often it was started, where, and which attempt may write.

If a node only lost its network, a requeued run can have two processes that both believe they own it. Each attempt takes
the next number in lives.json, and checks before every write whether that number is still the newest: the number is a
fencing token, and no clocks are compared.
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
    code: str  # hash of the copy of the code that ran, empty for the working tree
    first_step: int  # optimizer steps that earlier attempts have done
    time: float  # seconds since 1970, for people
    world_size: int = 0  # processes; 0 = noted by an earlier version, which did not say
    commit: str = ""  # git commit of the code, empty if it came from no checkout
    changed: bool = False  # the checkout had changes that are not in the commit
    remote: str = ""  # address of the checkout's origin


def read_attempts(folder: Path) -> list[Attempt]:
    """The attempts at a run, oldest first; raises ValueError if their file is damaged."""
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
    """Take the next number and write it, so that earlier attempts may write no more; warns if they ran other code.

    max_without_progress: how many attempts in a row may start at the same step, 0 = any number. Raises Failure at
    more: a run that is requeued again and again without finishing a step wastes the cluster and never ends.
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
    checkout = running_code()
    attempt = Attempt(
        number=attempts[-1].number + 1 if attempts else 1,
        host=socket.gethostname(),
        job_id=os.environ.get("SLURM_JOB_ID", ""),
        code=os.environ.get(CODE_NAME, ""),
        first_step=first_step,
        time=time.time(),
        world_size=world_size,
        commit=checkout.commit,
        changed=checkout.changed,
        remote=checkout.remote,
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
    """Raises Interrupted if a later attempt at the run has started: this one must stop and write nothing."""
    newest = read_attempts(folder)[-1:]
    if newest and newest[0].number > attempt.number:
        raise Interrupted(
            f"{folder} goes on in another process (start {newest[0].number} on {newest[0].host}): this one, start "
            f"{attempt.number}, stops and writes nothing more"
        )
