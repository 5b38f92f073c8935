"""A training run in this process: its parts, its progress, its attempt, its clock and its energy meter."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from petseg.optim.exchange import GradientExchange
from petseg.run.compiling.artifacts import SharedArtifacts
from petseg.run.compiling.choice import CompileChoice
from petseg.run.energy import EnergyMeter, open_meter
from petseg.run.graphs import PassGraphs, build_exchange, build_pass_graphs
from petseg.run.pace import LaunchMeter, StepClock, launch_meter
from petseg.run.parts import Parts
from petseg.run.progress import Progress, start_progress
from petseg.run_folder.attempts import Attempt, require_newest


@dataclass
class CurrentAttempt:
    """The current attempt at a run; `noted` only on the main process, since the others write nothing."""

    folder: Path
    save_every_min: float
    noted: Attempt | None = None
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def save_due(self) -> bool:
        """Whether the last save was more than `train.save_every_min` ago."""
        every_s = 60 * self.save_every_min
        return bool(every_s) and time.monotonic() - self.saved_at >= every_s

    def require_newest(self) -> None:
        """Call before writing: raises Interrupted on the main process if another process has taken the run over."""
        if self.noted is not None:
            require_newest(self.folder, self.noted)


@dataclass(frozen=True)
class Run:
    """All that training needs; evaluation needs only the parts."""

    parts: Parts
    progress: Progress
    attempt: CurrentAttempt
    pace: StepClock
    energy: EnergyMeter
    launches: LaunchMeter
    graphs: PassGraphs
    exchange: GradientExchange | None  # of gradients after the passes; None = DDP exchanges them, if anything does
    choice: CompileChoice | None  # whether steps run compiled, if they can
    teacher: nn.Module | None = None  # frozen, whose probabilities the run learns, if distill.teacher names one


def new_run(parts: Parts, teacher: nn.Module | None = None) -> Run:
    """A run at its start. parts: with a train split"""
    train = parts.config.train
    progress = start_progress(parts.config, parts.manifest.splits["train"].num_samples)
    graphs = build_pass_graphs(parts.config, parts.bare_model, parts.device, parts.world_size)
    return Run(
        parts=parts,
        progress=progress,
        attempt=CurrentAttempt(parts.folder, train.save_every_min),
        pace=StepClock(enabled=parts.world_size > 1 and parts.device.type == "cpu"),
        energy=open_meter(parts.device),
        launches=launch_meter(parts.device),
        graphs=graphs,
        exchange=build_exchange(parts.config, parts.bare_model, parts.device, parts.world_size),
        choice=build_choice(parts, graphs, progress),
        teacher=teacher,
    )


def build_choice(parts: Parts, graphs: PassGraphs, progress: Progress) -> CompileChoice | None:
    """How it is settled whether the run's steps run compiled; None if nothing is to be compiled."""
    if parts.compiled is None:
        return None
    train, model = parts.config.train, parts.config.model
    shared = SharedArtifacts(
        (model, train.mixed_precision, train.channels_last, sorted(parts.compiled.shapes)), parts.device
    )
    always = train.compile == "always"
    return CompileChoice(parts.compiled, shared, graphs, parts.accelerator, progress, always)
