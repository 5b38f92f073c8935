"""This process's attempt at a run: its right to write, and when it last saved."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from petseg.run_folder.attempts import Attempt, require_newest


@dataclass
class CurrentAttempt:
    """Only the main process has one `noted`: the others write nothing."""

    folder: Path
    save_every_min: float
    noted: Attempt | None = None
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def save_due(self) -> bool:
        """Whether the last save is longer ago than `train.save_every_min`."""
        every_s = 60 * self.save_every_min
        return bool(every_s) and time.monotonic() - self.saved_at >= every_s

    def require_newest(self) -> None:
        """Raises Interrupted on the main process of a run that another process has taken over; called before writes."""
        if self.noted is not None:
            require_newest(self.folder, self.noted)
