"""tracking.json: the state of a run's view in wandb, which status reads without asking wandb.

It is written by the run itself (petseg.tracking.tracker), and by a replay of the run once wandb has everything.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from shards.files import build, read_json_object, write_whole

TRACKING_NAME = "tracking.json"

State = Literal[
    "starting",  # the client was started
    "sending",  # wandb has the run
    "sent",  # wandb has shown all that this attempt, or a replay, has sent
    "lost",  # wandb has not received everything
    "offline",  # kept in the run's folder
]


@dataclass(frozen=True)
class TrackingNote:
    """The state of a run's view in wandb."""

    state: State
    reason: str = ""  # why it is lost
    url: str = ""  # of the run
    project_url: str = ""

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise ValueError(f"state {self.state!r}: must be one of {', '.join(get_args(State))}")
        if not all(isinstance(text, str) for text in (self.reason, self.url, self.project_url)):
            raise TypeError("reason and addresses must be text")


def save_note(note: TrackingNote, folder: Path) -> None:
    """Write tracking.json; a full disk or a missing folder is no error, since a run must not end for this."""
    with contextlib.suppress(OSError):
        write_whole(folder / TRACKING_NAME, json.dumps(asdict(note), indent=2) + "\n")


def read_note(folder: Path) -> TrackingNote | None:
    """The state of a run's view in wandb, None if the run never used wandb or the file cannot be read."""
    try:
        return build(TrackingNote, read_json_object(folder / TRACKING_NAME))
    except (OSError, ValueError, TypeError):
        return None
