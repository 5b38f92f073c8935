"""A training run in this process: its parts, how far it has come, and the clocks that watch it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from petseg.run.energy import EnergyMeter, open_meter
from petseg.run.graphs import PassGraphs, build_pass_graphs
from petseg.run.pace import StepClock
from petseg.run.parts import Parts
from petseg.run.progress import Progress, start_progress
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


@dataclass(frozen=True)
class Run:
    """Evaluation takes the parts alone; whoever trains takes it all."""

    parts: Parts
    progress: Progress
    attempt: CurrentAttempt
    pace: StepClock
    energy: EnergyMeter
    graphs: PassGraphs


def new_run(parts: Parts) -> Run:
    """A run that has not begun, of parts that have a train split."""
    train = parts.config.train
    return Run(
        parts=parts,
        progress=start_progress(parts.config, parts.manifest.splits["train"].num_samples),
        attempt=CurrentAttempt(parts.folder, train.save_every_min),
        pace=StepClock(enabled=parts.world_size > 1 and parts.device.type == "cpu"),
        energy=open_meter(parts.device),
        graphs=build_pass_graphs(parts.config, parts.bare_model, parts.device, parts.world_size),
    )
