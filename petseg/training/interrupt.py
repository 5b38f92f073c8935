"""A flag that signals set, and that training reads where it can stop.

Slurm sends USR2 ahead of the time limit (`--signal`): save, and ask to be requeued. TERM comes at preemption, at a
node's shutdown and from people: save, and then find out who sent it. Slurm sends CONT along with TERM; it is ignored,
because a suspended job that is resumed gets it too.
One rank or all may get a signal: the flag is part of the next all-reduce, so that all ranks stop after the same step.
"""

from __future__ import annotations

import signal
from types import FrameType

REQUEUE_SIGNAL = signal.SIGUSR2
SIGNALS = (signal.SIGTERM, REQUEUE_SIGNAL)

_received: list[int] = []


def install() -> None:
    """Let TERM and USR2 set the flag instead of ending the process; call it at the start, in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    return bool(_received)


def received() -> tuple[int, ...]:
    """The signals so far, in the order in which they came."""
    return tuple(_received)


def requeue_requested() -> bool:
    """Whether one of the signals asks for a requeue."""
    return REQUEUE_SIGNAL in _received


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
