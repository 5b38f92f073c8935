"""Slurm's accounting of jobs: how long each start of a job ran, and which resources it held."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from slurm.patience import one_line

SACCT_TIMEOUT_S = 60.0
FIELDS = (
    "JobID", "State", "ElapsedRaw", "Start", "TimelimitRaw", "AllocCPUS", "ReqCPUS", "AllocTRES", "ReqTRES",
    "ConsumedEnergyRaw",
)  # fmt: skip
ACCOUNTING_OFF = "Slurm accounting storage is disabled"
MOST_J = 1e15  # Slurm writes unknown energy as one of the largest 64-bit numbers
# Slurm's states of a start that did its work, or may still do it
GOOD_STATES = frozenset({"COMPLETED", "RUNNING", "PENDING", "SUSPENDED", "COMPLETING", "RESIZING"})
GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """One start of a job; a job that was requeued has several."""

    job_id: str
    state: str
    elapsed_s: float
    began: float  # seconds since 1970; infinite if it has not
    limit_s: float  # 0 = unlimited
    cores: int
    gpus: int | None  # None where accounting does not keep them
    energy_j: float | None = None  # of its nodes while it ran, None where they are not metered (AcctGatherEnergyType)

    @property
    def asked_s(self) -> float:
        """The time limit; nothing for a job that ended in the queue, or has no limit."""
        return 0.0 if self.ended_early and not self.elapsed_s else self.limit_s

    @property
    def ended_early(self) -> bool:
        return self.state not in GOOD_STATES


@dataclass(frozen=True)
class Accounts:
    """Every start of some jobs, as far as accounting knows them."""

    starts: tuple[Start, ...] = ()
    silence: str = ""  # why sacct does not answer; empty if it does, or if accounting is off


def ask_sacct(job_ids: Sequence[str]) -> Accounts:
    """Every start of these jobs; none if accounting is off or does not know them."""
    if not job_ids:
        return Accounts()
    arrays = ",".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", f"--format={','.join(FIELDS)}"]
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            [*command, f"--jobs={arrays}"], capture_output=True, text=True, timeout=SACCT_TIMEOUT_S, check=True, env=env
        )
    except subprocess.TimeoutExpired:
        return Accounts(silence=f"no answer in {SACCT_TIMEOUT_S:.0f} s")
    except (OSError, subprocess.SubprocessError) as error:
        reason = one_line(getattr(error, "stderr", "") or "")
        logger.debug("sacct does not answer, accounting may be off: %s", reason or error)
        return Accounts(silence="" if ACCOUNTING_OFF in reason else reason)
    wanted = set(job_ids)
    return Accounts(tuple(start for start in parse_starts(done.stdout) if start.job_id in wanted))


def parse_starts(text: str) -> list[Start]:
    """Lines of sacct with FIELDS; waiting tasks of an array, which share a line (`12_[3-9]`), are left out."""
    rows = [line.split("|") for line in text.splitlines()]
    starts = []
    for row in rows:
        if len(row) != len(FIELDS) or "[" in row[0]:
            continue
        job_id, state, elapsed, began, limit, cores, asked_cores, held, asked, energy = row
        energy_j = float(energy) if energy.isdigit() else 0.0
        gpus = GPUS.search(held) or GPUS.search(asked)
        starts.append(
            Start(
                job_id=job_id,
                state=state.partition(" ")[0],  # "CANCELLED by 1000"
                elapsed_s=float(elapsed or 0),
                began=float(began) if began.isdigit() else float("inf"),
                limit_s=float(limit) * 60 if limit.isdigit() else 0.0,
                cores=int(cores or 0) or int(asked_cores or 0),
                gpus=int(gpus[1]) if gpus else None,
                energy_j=energy_j if 0 < energy_j < MOST_J else None,
            )
        )
    return starts
