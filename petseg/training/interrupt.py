"""A flag that a signal sets and training reads where it can stop.

USR2 is what Slurm sends ahead of the time limit (`--signal`): save, and ask to be requeued. TERM comes at preemption,
at a node's shutdown and from people: save, and then find out who sent it. Slurm sends CONT along with TERM; it is left
alone, because a job that was suspended and goes on gets it too.
Every rank may get a signal or only one: the flag travels with the next all-reduce, and all ranks stop at one step.
"""

from __future__ import annotations

import signal
from types import FrameType

REQUEUE_SIGNAL = signal.SIGUSR2
SIGNALS = (signal.SIGTERM, REQUEUE_SIGNAL)

_received: list[int] = []


def install() -> None:
    """Let TERM and USR2 set the flag instead of ending the process; call it first of all, in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    return bool(_received)


def received() -> tuple[int, ...]:
    """The signals that came, in their order."""
    return tuple(_received)


def requeue_requested() -> bool:
    """Whether one of the signals asks for a requeue."""
    return REQUEUE_SIGNAL in _received


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
