"""A training run in this process: its parts, how far it has come, and the clocks that watch it."""

from __future__ import annotations

from dataclasses import dataclass

from petseg.run.attempt import CurrentAttempt
from petseg.run.energy import EnergyMeter, open_meter
from petseg.run.pace import StepClock
from petseg.run.parts import Parts
from petseg.run.progress import Progress, start_progress


@dataclass(frozen=True)
class Run:
    """Evaluation takes the parts alone; whoever trains takes it all."""

    parts: Parts
    progress: Progress
    attempt: CurrentAttempt
    pace: StepClock
    energy: EnergyMeter


def new_run(parts: Parts) -> Run:
    """A run that has not begun, of parts that have a train split."""
    train = parts.config.train
    return Run(
        parts=parts,
        progress=start_progress(parts.config, parts.manifest.splits["train"].num_samples),
        attempt=CurrentAttempt(parts.folder, train.save_every_min),
        pace=StepClock(enabled=parts.world_size > 1 and parts.device.type == "cpu"),
        energy=open_meter(parts.device),
    )
