"""A flag that a signal sets and training reads where it can stop.

USR2 is what Slurm sends ahead of the time limit (`--signal`), TERM what it sends at preemption and what people send.
Every rank may get it or only one: the flag travels with the next all-reduce, and all ranks stop at the same step.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

_received: list[int] = []


def install() -> None:
    """Let TERM and USR2 set the flag instead of ending the process; call it first of all, in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    return bool(_received)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
