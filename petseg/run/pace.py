"""How quick each rank of a run is by itself: what it waits for data, and its work outside of waiting for the others.

In DDP all ranks take as long for a step as the slowest, so a step's time says nothing about who that is. A rank's own
time is all but the places where it may wait for another: the last backward pass of a step, in which gradients are
exchanged, and the start of the forward pass, at which DDP sends rank 0's buffers. That is measured on CPUs, where the
host does the work; of a GPU the host only knows how long it waited for data, and asking for more would make it wait.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

SLOW = 1.2  # times the middle of the ranks
SLOW_S = 1.0  # and so much in an epoch: less is noise


@dataclass
class StepClock:
    """A clock that runs while a rank works by itself, and stands while it may wait for others."""

    enabled: bool = True
    own_s: float = 0.0
    _since: float | None = None

    def begin(self) -> None:
        """Start an epoch with nothing."""
        self.own_s, self._since = 0.0, None

    def resume(self) -> None:
        if self.enabled:
            self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self.own_s += time.perf_counter() - self._since
            self._since = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        yield
        self.resume()

    @contextlib.contextmanager
    def stopped_until(self, model: nn.Module) -> Iterator[None]:
        """Stopped until `model` is called: what wraps it (DDP) may wait before."""
        if not self.enabled:
            yield
            return
        self.stop()
        hook = model.register_forward_pre_hook(lambda *_: self.resume())
        try:
            yield
        finally:
            hook.remove()


@dataclass(frozen=True)
class RankTime:
    """What one rank knows of an epoch."""

    waited_s: float  # for data
    own_s: float  # outside of waiting for other ranks, the wait for data included; since the run's last start
    seconds: float  # in all


def with_common_steps(ranks: Sequence[RankTime]) -> list[RankTime]:
    """Own times where only the waits for data are known (GPUs): each rank's, and the steps, which are alike for all.

    The steps are what the rank that waited for data most has left: it is the one that waited for no other.
    """
    steps_s = min(rank.seconds - rank.waited_s for rank in ranks)
    return [replace(rank, own_s=rank.waited_s + steps_s) for rank in ranks]


def data_wait(ranks: Sequence[RankTime]) -> float:
    """Share of the time that the rank waited for data that waited most: the others wait for it."""
    return max(rank.waited_s / rank.seconds for rank in ranks)


def straggler(ranks: Sequence[RankTime]) -> tuple[int, float]:
    """The slowest rank, and its own time as a multiple of the ranks' middle (median, of an even number the lower)."""
    own_s = [rank.own_s for rank in ranks]
    middle_s = statistics.median_low(own_s)
    slowest = own_s.index(max(own_s))
    return slowest, own_s[slowest] / middle_s if middle_s else 1.0


def is_slow(ranks: Sequence[RankTime]) -> bool:
    """Whether the slowest rank is a fifth slower than the middle, and that by a second or more."""
    slowest, ratio = straggler(ranks)
    own_s = ranks[slowest].own_s
    return ratio > SLOW and own_s - own_s / ratio >= SLOW_S


def straggler_in_words(ranks: Sequence[RankTime], hosts: Sequence[str]) -> str:
    """hosts: of each rank."""
    slowest, ratio = straggler(ranks)
    own_s = ranks[slowest].own_s
    return (
        f"rank {slowest} on {hosts[slowest]} took {own_s:.1f} s by itself in this epoch, {100 * (ratio - 1):.0f} % "
        f"more than the ranks' middle of {own_s / ratio:.1f} s: the others wait for it in each step. If it stays so, "
        "see what else runs there, or leave the host out with --exclude"
    )
