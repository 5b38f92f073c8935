"""The cost of a sweep before it is submitted: GPU hours (CPU core hours without GPUs), memory and end."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from jobs.cost.memory import predict_gpu_memory
from jobs.cost.speeds import TrialSpeed, probes_needed, read_records, speed_by_probe, speed_by_records, steps_of_epoch
from jobs.design.shard_sets import ShardSets
from jobs.runs.launch import Launch
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trials import Trials
from jobs.state.liveness import read_last_row
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.run.length import EpochTime, epochs_of
from petseg.run_folder.layout import load_overrides
from shards.manifest import Manifest
from shards.terminal import duration
from slurm.resources import Resources

GPU_HOURS, CORE_HOURS = "GPU hours", "CPU core hours"


@dataclass(frozen=True)
class TrialCost:
    """The remaining cost of one trial; None for what is unknown."""

    trial: Trial
    seconds: float | None  # of its job, from start to end
    epochs: float | None  # left to train; a budget may end within an epoch
    host_memory_gib: float | None  # of a node
    gpu_memory_gib: float | None  # of a GPU
    source: str


@dataclass(frozen=True)
class AxisCost:
    """The mean seconds of a trial at each value of an axis."""

    name: str
    seconds: dict[str, float]

    @property
    def spread(self) -> float:
        """The cost of the most expensive value, as a multiple of the cheapest."""
        return max(self.seconds.values()) / max(min(self.seconds.values()), 1e-9)


@dataclass(frozen=True)
class Estimate:
    """The cost of the trials that are to be submitted."""

    trials: tuple[TrialCost, ...]
    gpus: int  # of one trial
    cores: float  # of one trial
    end_s: float | None  # from the first job's start, without later waits in the queue
    max_parallel: int
    axes: tuple[AxisCost, ...]  # the largest spread first
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        return GPU_HOURS if self.gpus else CORE_HOURS

    def hours(self, unit: str) -> float | None:
        """The hours of all trials; None if one of them is unknown."""
        known = [cost.seconds for cost in self.trials if cost.seconds is not None]
        if len(known) < len(self.trials):
            return None
        return sum(known) * (self.gpus if unit == GPU_HOURS else self.cores) / 3600

    @property
    def host_memory_gib(self) -> float | None:
        return max((c.host_memory_gib for c in self.trials if c.host_memory_gib is not None), default=None)

    @property
    def gpu_memory_gib(self) -> float | None:
        return max((c.gpu_memory_gib for c in self.trials if c.gpu_memory_gib is not None), default=None)


def estimate(trials: Trials, launch: Launch, probe: bool) -> Estimate:
    """The cost of the trials without a result, from records of earlier trials or short probes on this machine.

    launch: how they will be submitted; on this machine cpus_per_task is the number of threads of a process
    probe: measure a few steps of trials without records, which takes seconds on a GPU and up to minutes on a CPU

    Trials that share a job divide its cores. How much trials on one GPU slow each other down is unknown, so they are
    estimated as running one after the other. If a probe fails, or runs on a CPU for jobs with GPUs, its trials get no
    estimate, and a note says why.
    """
    sweep, sets, at_once = trials.sweep, trials.sets, launch.trials_at_once
    resources, max_parallel = launch.settle(-(-len(trials.cells) // launch.trials_per_job))
    missing = [trial for trial in trials if trial.result() is None]
    configs = {trial.id: with_values(trials.cells[trial.id].config, load_overrides(trial.folder)) for trial in missing}
    share = max(1, resources.cpus_per_task // at_once)
    speeds, notes = estimate_speeds(configs, sets, replace(resources, cpus_per_task=share), sweep, probe)
    unmeasured = {i: c for i, c in configs.items() if not _measured(speeds[i])}
    memory, more = predict_gpu_memory(unmeasured, sets, resources)
    notes += more
    costs = tuple(
        _scale_memory(
            _cost(trial, configs[trial.id], sets.of(configs[trial.id]), speeds[trial.id]),
            memory.get(trial.id),
            resources.processes_per_node,
            at_once,
        )
        for trial in missing
    )
    side_by_side = 1 if resources.gpus_per_node else at_once
    if at_once > 1:
        notes += _notes_on_sharing(at_once, resources)
    end_s = _end(costs, max_parallel, launch.trials_per_job, side_by_side)
    if end_s is not None:
        notes.append("the wait in the queue is not known, and not in it")
    notes += _notes_on_time(costs, resources)
    return Estimate(
        trials=costs,
        gpus=resources.nodes * resources.gpus_per_node,
        cores=resources.processes * resources.cpus_per_task / side_by_side,
        end_s=end_s,
        max_parallel=max_parallel,
        axes=_axes(sweep, costs),
        notes=tuple(notes),
    )


def estimate_speeds(
    configs: Mapping[str, RunConfig], sets: ShardSets, resources: Resources, sweep: Sweep, probe: bool
) -> tuple[dict[str, TrialSpeed | str], list[str]]:
    """(the speed of each trial or why it is unknown, notes)."""
    records = read_records(sweep.folder.parent)
    speeds: dict[str, TrialSpeed | str] = {}
    notes: list[str] = []
    for identifier, config in configs.items():
        try:
            speeds[identifier] = speed_by_records(config, sets.of(config), resources, records)
        except LookupError as error:
            speeds[identifier] = f"{error}, and no probe was made"
    unknown = {i: configs[i] for i, known in speeds.items() if isinstance(known, str)}
    if len(unknown) < len(configs):
        notes.append("by records: from the first step on, without a job's start (imports, decoding)")
    if not probe:
        return speeds, notes
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if unknown and load > cores / 2:
        notes.append(f"this machine is busy (load {load:.1f} on {cores} cores), which makes a probe on its CPU slower")
    for ids, config in probes_needed(unknown):
        try:
            speed = speed_by_probe(config, sets.of(config), resources)
        except LookupError as error:
            speeds |= dict.fromkeys(ids, str(error))
            continue
        if resources.gpus_per_node and not speed.on_gpu:
            whole_s = speed.trial_s(epochs_of(config.train, steps_of_epoch(config, sets.of(config)), speed.epoch))
            note = f"{speed.source}: {duration(whole_s)} a trial, no estimate for GPUs"
            speeds |= dict.fromkeys(ids, note)
            notes.append("this machine has no GPU: run one trial first, whose records tell, or look from a GPU node")
            continue
        if len({configs[i].augment.policy for i in ids}) > 1:
            speed = replace(speed, source=f"{speed.source}, augmented by {config.augment.policy}")
        speeds |= dict.fromkeys(ids, speed)
    return speeds, list(dict.fromkeys(notes))


def _measured(speed: TrialSpeed | str) -> bool:
    return isinstance(speed, TrialSpeed) and speed.gpu_memory_gib is not None


def _cost(trial: Trial, config: RunConfig, manifest: Manifest, speed: TrialSpeed | str) -> TrialCost:
    """The cost of one trial, with the memory of one process."""
    done, steps = int(read_last_row(trial.folder).get("epoch", 0)), steps_of_epoch(config, manifest)
    if isinstance(speed, str):
        if config.train.budget_min:  # at any speed
            source = f"train.budget_min, without start and end ({speed})"
            return TrialCost(trial, 60 * config.train.budget_min, None, None, None, source)
        at_any = EpochTime(0.0, 0.0)  # a length in epochs or steps does not depend on the speed
        return TrialCost(trial, None, max(0.0, epochs_of(config.train, steps, at_any) - done), None, None, speed)
    epochs = max(0.0, epochs_of(config.train, steps, speed.epoch) - done)
    return TrialCost(trial, speed.trial_s(epochs), epochs, speed.host_memory_gib, speed.gpu_memory_gib, speed.source)


def _scale_memory(cost: TrialCost, predicted_gib: float | None, processes: int, at_once: int) -> TrialCost:
    """The cost with the memory of a node's processes and of the trials that run at once.

    predicted_gib: of a GPU, used where no probe measured it
    """
    host_gib, gpu_gib = cost.host_memory_gib, predicted_gib if cost.gpu_memory_gib is None else cost.gpu_memory_gib
    host_gib = host_gib and host_gib * processes * at_once
    return replace(cost, host_memory_gib=host_gib, gpu_memory_gib=gpu_gib and gpu_gib * at_once)


def _notes_on_sharing(trials_at_once: int, resources: Resources) -> list[str]:
    notes = [f"memory is that of {trials_at_once} trials at once"]
    if resources.gpus_per_node:
        notes.append("trials that share a GPU are estimated as one after the other, the most that it can take")
    return notes


def _notes_on_time(costs: Sequence[TrialCost], resources: Resources) -> list[str]:
    """A note if the longest trial exceeds the time limit of a job."""
    limit_s, longest_s = resources.timeout_min * 60.0, max((cost.seconds or 0.0 for cost in costs), default=0.0)
    if longest_s <= limit_s:
        return []
    attempts = -(-longest_s // limit_s)
    over = f"a trial of {duration(longest_s)} goes over the time limit of {resources.timeout_min} min"
    return [f"{over}: it takes {attempts:.0f} attempts, or a higher --timeout-min"]


def _end(costs: Sequence[TrialCost], max_parallel: int, trials_per_job: int, side_by_side: int) -> float | None:
    """The end of the last job if each starts as soon as one of `max_parallel` slots is free; None if unknown."""
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    if not costs or len(seconds) < len(costs):
        return None
    jobs = [
        _makespan(seconds[start : start + trials_per_job], side_by_side)
        for start in range(0, len(seconds), trials_per_job)
    ]
    return _makespan(jobs, max_parallel)


def _makespan(seconds: Sequence[float], num_slots: int) -> float:
    """The end of the last task if each starts, in this order, as soon as a slot is free."""
    slots = [0.0] * max(1, min(num_slots, len(seconds)))
    for one in seconds:
        heapq.heapreplace(slots, slots[0] + one)
    return max(slots)


def _axes(sweep: Sweep, costs: Sequence[TrialCost]) -> tuple[AxisCost, ...]:
    axes = []
    for name in sweep.axes:
        seconds: dict[str, list[float]] = {}
        for cost in costs:
            if cost.seconds is not None:
                seconds.setdefault(str(cost.trial.axes.get(name)), []).append(cost.seconds)
        if len(seconds) > 1:
            axes.append(AxisCost(name, {value: mean(several) for value, several in seconds.items()}))
    return tuple(sorted(axes, key=lambda axis: -axis.spread))
