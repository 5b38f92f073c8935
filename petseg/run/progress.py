"""The progress of a run: what it has done, and how many steps it will have. Checkpoints keep it beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from petseg.config import RunConfig
from petseg.data.ledger import Count
from petseg.data.plan import steps_per_epoch

SUMS = 4  # per rank: samples, and their loss, Dice and IoU


@dataclass(frozen=True)
class PartialEpoch:
    """What all ranks together have done of an interrupted epoch."""

    steps: int = 0  # finished optimizer steps
    sums: tuple[tuple[float, ...], ...] = ()  # of each rank: samples, and their loss, Dice and IoU
    count: Count = field(default_factory=Count)
    seconds: float = 0.0
    waited_s: float = 0.0

    def sums_of(self, rank: int, world_size: int) -> tuple[float, ...]:
        """The sums that a rank resumes from: its own or, if the number of ranks has changed, all of them on rank 0.

        Each rank resumes its own because floating-point sums depend on their order: the numbers stay the same.
        """
        if len(self.sums) == world_size:
            return self.sums[rank]
        if not self.sums or rank:
            return (0.0,) * SUMS
        return tuple(sum(column) for column in zip(*self.sums, strict=True))


@dataclass(frozen=True)
class Best:
    """The epoch with the highest val/dice so far; step 0 before any epoch was measured."""

    step: int = 0
    epoch: int = 0
    dice: float = -1.0


@dataclass
class Progress:
    """Epochs and steps of a run, done and to do."""

    steps_per_epoch: int
    total_steps: int  # with train.budget_min fixed by the time of the first epoch
    epoch: int = 0  # finished epochs
    partial: PartialEpoch = field(default_factory=PartialEpoch)  # of the next epoch
    best: Best = field(default_factory=Best)
    compiled: bool | None = None  # whether full steps run compiled; None = not decided (petseg.run.compiling.choice)

    @property
    def done_steps(self) -> int:
        """Optimizer steps since the start of the run."""
        return min(self.epoch * self.steps_per_epoch + self.partial.steps, self.total_steps)

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, the last of which may have fewer steps."""
        return -(-self.total_steps // self.steps_per_epoch)

    def first_step(self, epoch: int) -> int:
        """Optimizer steps before an epoch (from 1)."""
        return (epoch - 1) * self.steps_per_epoch

    def steps_of(self, epoch: int) -> int:
        """Optimizer steps of an epoch (from 1)."""
        return min(self.steps_per_epoch, self.total_steps - self.first_step(epoch))

    def finish_epoch(self, epoch: int, step: int, dice: float) -> None:
        """Note that an epoch is done, which may be the best so far. step: since the start of the run"""
        self.epoch = epoch
        if dice > self.best.dice:
            self.best = Best(step, epoch, dice)

    def to_state(self) -> dict[str, Any]:
        """The JSON fields of a checkpoint's state."""
        return {
            "epoch": self.epoch,
            "total_steps": self.total_steps,
            "so_far": asdict(self.partial),
            "best": {"step": self.best.step, "epoch": self.best.epoch, "val/dice": self.best.dice},
            "compiled": self.compiled,
        }

    def from_state(self, state: Mapping[str, Any], budget_min: float) -> None:
        """Restore what `to_state` wrote; the number of steps is restored only with a budget in minutes.

        Raises KeyError, TypeError or AttributeError if the state lacks something.
        """
        if budget_min:
            self.total_steps = int(state["total_steps"])
        partial, best = state["so_far"], state["best"]
        self.epoch = int(state["epoch"])
        self.partial = PartialEpoch(
            **partial | {"sums": tuple(map(tuple, partial["sums"])), "count": Count(**partial["count"])}
        )
        self.best = Best(best["step"], best["epoch"], best["val/dice"])
        self.compiled = state.get("compiled")  # earlier versions decided at each start


def start_progress(config: RunConfig, num_samples: int) -> Progress:
    """The progress of a run at its start. num_samples: of the train split"""
    per_epoch = steps_per_epoch(num_samples, config.train.batch_size)
    return Progress(per_epoch, config.train.budget_steps or per_epoch * config.train.epochs)
