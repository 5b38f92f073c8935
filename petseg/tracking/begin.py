"""What the process with wandb's client is told of a run when it begins, and what of a text it may say to anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Begin:
    """Which run, and where its numbers are."""

    folder: str
    id: str
    group: str
    job_type: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    project: str
    entity: str
    mode: str  # online | offline
    wandb_dir: str  # where the client keeps its own files
    init_timeout_s: float
    finish_timeout_s: float
    name: str = ""  # that is shown; empty = the id
    program: str = "petseg/train.py"  # that was started
    commit: str = ""  # of git that the code came from; empty = it is not known
    remote: str = ""  # address of the git repository
    first_epoch: int = 0  # rows before it are not sent, whatever wandb has
    watched_pid: int = 0  # the process whose load is recorded; 0 = this is a replay
    host: str = ""  # of a replayed run
    confirm_s: float = 0.0  # how long wandb may take to show at the end what it was sent; 0 = it is not asked
