"""Nodes that lacked GPUs which Slurm had promised to a job of a sweep, as recorded by the job.

Such a node is certain to fail the next job too. Each start of a job has its own file, so that jobs which end at the
same moment do not mix their lines.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.files import build, read_json, require_own_folder, write_whole

FOLDER = "node_faults"


@dataclass(frozen=True)
class Fault:
    """One start of a job that ended by its node."""

    job_id: str
    start: int  # from 0: how often Slurm had started the job before
    node: str  # Slurm's name of it
    error: str


def note_fault(sweep_folder: Path, fault: Fault) -> None:
    folder = sweep_folder / FOLDER
    require_own_folder(folder)
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"{fault.job_id}-{fault.start}-{fault.node}.json", json.dumps(asdict(fault), indent=2) + "\n")


def read_faults(sweep_folder: Path) -> list[Fault]:
    """All faults of a sweep; unreadable files are left out, because faults only advise."""
    faults = []
    for path in sorted((sweep_folder / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            faults.append(build(Fault, read_json(path)))
    return faults
