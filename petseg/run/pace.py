"""The speed of each rank alone: its wait for data and its work, without the time that it waits for other ranks.

In DDP every rank takes as long for a step as the slowest, so a step's time does not show which rank that is. A rank's
own time leaves out the points where it may wait for others: the last backward pass of a step, in which gradients are
exchanged, and the start of the forward pass, when DDP sends rank 0's buffers. It is measured on CPUs, where hosts do
the work; with a GPU the host only knows how long it waited for data, and measuring more would make it wait.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

SLOW = 1.2  # times the median of the ranks: from here on a rank is slow
SLOW_S = 1.0  # and by so many seconds in an epoch: less is noise


@dataclass
class StepClock:
    """A clock that runs while a rank works on its own, and is stopped while it may wait for others."""

    enabled: bool = True
    own_s: float = 0.0
    _since: float | None = None

    def reset(self) -> None:
        """Reset the clock for an epoch."""
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
        """Stop the clock until `model` is called: its wrapper (DDP) may wait for other ranks before."""
        if not self.enabled:
            yield
            return
        self.stop()
        hook = model.register_forward_pre_hook(lambda *_: self.resume())
        try:
            yield
        finally:
            hook.remove()


class DeviceEvent(Protocol):
    """A point on a device's timeline, such as torch.cuda.Event(enable_timing=True)."""

    def record(self) -> None: ...

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from this event to another; both have happened."""


@dataclass
class LaunchMeter:
    """The share of a step's time in which the host launches a GPU's work: near 1, the GPU waits for the host.

    It measures the first step after the host has waited for the device anyway: then no earlier work is queued, so that
    the host neither runs ahead of the device nor waits for room in the queue. The device's time is that between two
    events in its queue, which are read at the end of the epoch: the meter makes nothing wait.
    """

    new_event: Callable[[], DeviceEvent] | None = None  # None: there is no GPU, and nothing is measured
    _armed: bool = False
    _steps: list[tuple[float, DeviceEvent, DeviceEvent]] = field(default_factory=list)  # the host's seconds

    @property
    def enabled(self) -> bool:
        return self.new_event is not None

    def arm(self) -> None:
        """Measure the next step: the device has just been waited for."""
        self._armed = True

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        if self.new_event is None or not self._armed:
            yield
            return
        self._armed = False
        start, end = self.new_event(), self.new_event()
        start.record()
        began = time.perf_counter()
        yield
        host_s = time.perf_counter() - began
        end.record()
        self._steps.append((host_s, start, end))

    def take_share(self) -> float:
        """The share over the steps measured since the last call, NaN without any. The device must have been waited for.

        At most 1: what a host does after its last launch is no longer a wait of the device.
        """
        steps, self._steps = self._steps, []
        step_s = sum(max(host_s, start.elapsed_time(end) / 1000) for host_s, start, end in steps)
        return sum(host_s for host_s, _, _ in steps) / step_s if step_s else math.nan


def launch_meter(device: torch.device) -> LaunchMeter:
    """The meter of a device, which measures only on CUDA."""
    if device.type != "cuda":
        return LaunchMeter()
    return LaunchMeter(lambda: torch.cuda.Event(enable_timing=True))


@dataclass(frozen=True)
class RankTime:
    """The times of one rank in an epoch."""

    waited_s: float  # for data
    own_s: float  # without the wait for other ranks, but with that for data; since the run's last start
    seconds: float  # of the epoch


def with_common_steps(ranks: Sequence[RankTime]) -> list[RankTime]:
    """Own times if only the waits for data are known (GPUs): each rank's wait plus the steps, equal on all ranks.

    The steps take what is left of the epoch on the rank that waited longest for data: it waited for no other rank.
    """
    steps_s = min(rank.seconds - rank.waited_s for rank in ranks)
    return [replace(rank, own_s=rank.waited_s + steps_s) for rank in ranks]


def data_wait(ranks: Sequence[RankTime]) -> float:
    """Share of its time that a rank waited for data, the largest of all ranks: the others wait for that rank."""
    return max(rank.waited_s / rank.seconds for rank in ranks)


def straggler(ranks: Sequence[RankTime]) -> tuple[int, float]:
    """The slowest rank, and its own time as a multiple of the ranks' median (of an even number the lower one)."""
    own_s = [rank.own_s for rank in ranks]
    median_s = statistics.median_low(own_s)
    slowest = own_s.index(max(own_s))
    return slowest, own_s[slowest] / median_s if median_s else 1.0


def is_slow(ranks: Sequence[RankTime]) -> bool:
    """Whether the slowest rank is slower than the median by a fifth, and by at least a second."""
    slowest, ratio = straggler(ranks)
    own_s = ranks[slowest].own_s
    return ratio > SLOW and own_s - own_s / ratio >= SLOW_S


def straggler_in_words(ranks: Sequence[RankTime], hosts: Sequence[str]) -> str:
    """The warning about the slowest rank. hosts: of each rank"""
    slowest, ratio = straggler(ranks)
    own_s = ranks[slowest].own_s
    return (
        f"rank {slowest} on {hosts[slowest]} took {own_s:.1f} s of its own in this epoch, {100 * (ratio - 1):.0f} % "
        f"more than the ranks' median of {own_s / ratio:.1f} s: the others wait for it in each step. If that persists, "
        "see what else runs there, or leave the host out with --exclude"
    )
