"""The lives of a run: how often it was started, where, and which of them may write.

A run that is requeued can have two processes that believe to be it, if a node only lost its network. Each life takes
the next number in lives.json, and every write first looks whether that number is still the newest: the number is a
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
from shards.files import build, read_json
from shards.manifest import NotRegular, write_whole

LIVES_NAME = "lives.json"
KEPT_LIVES = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Life:
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


def read_lives(folder: Path) -> list[Life]:
    """The lives of a run, oldest first; raises ValueError that names a file that is damaged."""
    path = folder / LIVES_NAME
    try:
        rows = read_json(path)
        if not isinstance(rows, list):
            raise TypeError(f"a {type(rows).__name__} where a list is expected")
        return [build(Life, row) for row in rows]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, TypeError, NotRegular) as error:
        raise ValueError(
            f"{path} is damaged ({error}): see that no other process runs in {folder}, then delete the file and start "
            "the run again"
        ) from None


def begin_life(folder: Path, first_step: int, max_without_progress: int = 0, world_size: int = 0) -> Life:
    """Take the next number and write it down; the lives before may write no more. Says so if it has other code.

    max_without_progress: so many lives in a row may start at the same step, 0 = any number. Raises Failure at more: a
    run that is requeued again and again without finishing a step costs a cluster and ends never.
    """
    lives = read_lives(folder)
    stuck = lives[-max_without_progress:] if max_without_progress else []
    if stuck and len(stuck) == max_without_progress and all(life.first_step == first_step for life in stuck):
        hosts = ", ".join(dict.fromkeys(life.host for life in stuck))
        raise Failure(
            f"{folder} made no progress in {len(stuck)} starts, all at step {first_step} (on {hosts}): see its "
            f"log, and delete {folder / LIVES_NAME} to try again",
            Cause.KILLED,
        )
    came_from = running_code()
    life = Life(
        number=lives[-1].number + 1 if lives else 1,
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
    rows = [asdict(row) for row in [*lives, life][-KEPT_LIVES:]]
    write_whole(folder / LIVES_NAME, json.dumps(rows, indent=2) + "\n")
    if lives and lives[-1].code != life.code:
        logger.warning(
            "%s goes on with %s, where start %d on %s ran %s: its numbers are of both",
            folder, _code_in_words(life), lives[-1].number, lives[-1].host, _code_in_words(lives[-1]),
        )  # fmt: skip
    return life


def _code_in_words(life: Life) -> str:
    return f"code {life.code}" if life.code else "the code of the working tree"


def require_newest(folder: Path, life: Life) -> None:
    """Raises Interrupted if a later life of the run has begun: this one is to stop, and to write nothing."""
    newest = read_lives(folder)[-1:]
    if newest and newest[0].number > life.number:
        raise Interrupted(
            f"{folder} goes on in another process (start {newest[0].number} on {newest[0].host}): this one, start "
            f"{life.number}, stops and writes nothing more"
        )
