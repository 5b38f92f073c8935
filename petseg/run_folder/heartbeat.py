"""heartbeat.json: how far a run has come, rewritten while it trains."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.files import build, read_json, write_whole

HEARTBEAT_NAME = "heartbeat.json"
HEARTBEAT_EVERY_S = 15.0


@dataclass(frozen=True)
class Heartbeat:
    """How far a run had come at some time."""

    time: float  # seconds since 1970, by the clock of the run's node
    epoch: int  # from 1
    epochs: int
    step: int  # finished steps of that epoch
    steps_per_epoch: int
    images_per_s: float


def save_heartbeat(beat: Heartbeat, folder: Path) -> None:
    """Write heartbeat.json; a full disk is no error, since a run must not end for this."""
    with contextlib.suppress(OSError):
        write_whole(folder / HEARTBEAT_NAME, json.dumps(asdict(beat)) + "\n")


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """The heartbeat of a run, None if there is none or it cannot be read."""
    try:
        return build(Heartbeat, read_json(folder / HEARTBEAT_NAME))
    except (OSError, ValueError, TypeError):
        return None


class HeartbeatWriter:
    """Rewrites heartbeat.json every 15 seconds at most."""

    def __init__(self, folder: Path, epochs: int, steps_per_epoch: int) -> None:
        self._folder, self._epochs, self._steps_per_epoch = folder, epochs, steps_per_epoch
        self._last = float("-inf")

    def beat(self, epoch: int, step: int, images_per_s: float) -> None:
        """Write a heartbeat if the last one is old enough. epoch: from 1; step: finished steps of it"""
        now = time.monotonic()
        if now - self._last < HEARTBEAT_EVERY_S:
            return
        self._last = now
        beat = Heartbeat(time.time(), epoch, self._epochs, step, self._steps_per_epoch, images_per_s)
        save_heartbeat(beat, self._folder)
