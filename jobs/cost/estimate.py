"""What a sweep will cost, before it is submitted: GPU hours (CPU core hours without GPUs), memory, and when it ends."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from jobs.cost.memory import predict_gpu_memory
from jobs.cost.speeds import Pace, pace_by_probe, pace_by_records, probes_needed, read_records, steps_of_epoch
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
    """What one trial still costs; None where nothing tells."""

    trial: Trial
    seconds: float | None  # of its job, from start to end
    epochs: float | None  # still to train; a budget may end within one
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
        """How many times as much the dearest value costs as the cheapest."""
        return max(self.seconds.values()) / max(min(self.seconds.values()), 1e-9)


@dataclass(frozen=True)
class Estimate:
    """What the trials that are to be submitted will cost."""

    trials: tuple[TrialCost, ...]
    gpus: int  # of one trial
    cores: float  # of one trial
    end_s: float | None  # from the first job's start, with no wait in the queue after it
    max_parallel: int
    axes: tuple[AxisCost, ...]  # the one that costs most first
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        return GPU_HOURS if self.gpus else CORE_HOURS

    def hours(self, unit: str) -> float | None:
        """All trials together; None if what one of them takes is not known."""
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
    """What the trials cost that have no result: by records of earlier trials, else by short probes here.

    launch: as they will be submitted; on this machine cpus_per_task are the threads of a process
    probe: measure a few steps of what no record tells; it takes seconds on a GPU, up to minutes on a CPU
    Trials that share a job's CPU have each their share of the cores; how far trials on one GPU slow each other is not
    known, and they are estimated as if one came after the other. A probe that fails, and one on a CPU for jobs with
    GPUs, leaves its trials without an estimate, and a note.
    """
    sweep, sets, at_once = trials.sweep, trials.sets, launch.trials_at_once
    resources, max_parallel = launch.settle(-(-len(trials.cells) // launch.trials_per_job))
    missing = [trial for trial in trials if trial.result() is None]
    configs = {trial.id: with_values(trials.cells[trial.id].config, load_overrides(trial.folder)) for trial in missing}
    share = max(1, resources.cpus_per_task // at_once)
    paces, notes = estimate_speeds(configs, sets, replace(resources, cpus_per_task=share), sweep, probe)
    memory, more = predict_gpu_memory({i: c for i, c in configs.items() if not _measured(paces[i])}, resources)
    notes += more
    costs = tuple(
        _cost(t, configs[t.id], paces[t.id], sets.of(configs[t.id]), resources, memory.get(t.id)) for t in missing
    )
    side_by_side = 1 if resources.gpus_per_node else at_once
    if at_once > 1:
        costs = tuple(_times_memory(cost, at_once) for cost in costs)
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
) -> tuple[dict[str, Pace | str], list[str]]:
    """Trial -> its pace, or why it is not known; and notes for all."""
    records = read_records(sweep.folder.parent)
    paces: dict[str, Pace | str] = {}
    notes: list[str] = []
    for identifier, config in configs.items():
        try:
            paces[identifier] = pace_by_records(config, sets.of(config), resources, records)
        except LookupError as error:
            paces[identifier] = f"{error}, and no probe was made"
    unknown = {i: configs[i] for i, pace in paces.items() if isinstance(pace, str)}
    if len(unknown) < len(configs):
        notes.append("by records: from the first step on, without a job's start (imports, decoding)")
    if not probe:
        return paces, notes
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if unknown and load > cores / 2:
        notes.append(f"this machine is busy (load {load:.1f} on {cores} cores), which makes a probe on its CPU slower")
    for ids, config in probes_needed(unknown):
        try:
            found = pace_by_probe(config, sets.of(config), resources)
        except LookupError as error:
            paces |= dict.fromkeys(ids, str(error))
            continue
        if resources.gpus_per_node and not found.on_gpu:
            whole_s = found.trial_s(epochs_of(config.train, steps_of_epoch(config, sets.of(config)), found.epoch))
            note = f"{found.source}: {duration(whole_s)} a trial, no estimate for GPUs"
            paces |= dict.fromkeys(ids, note)
            notes.append("this machine has no GPU: run one trial first, whose records tell, or look from a GPU node")
            continue
        if len({configs[i].augment.policy for i in ids}) > 1:
            found = replace(found, source=f"{found.source}, augmented by {config.augment.policy}")
        paces |= dict.fromkeys(ids, found)
    return paces, list(dict.fromkeys(notes))


def _measured(pace: Pace | str) -> bool:
    return isinstance(pace, Pace) and pace.gpu_memory_gib is not None


def _cost(
    trial: Trial,
    config: RunConfig,
    pace: Pace | str,
    manifest: Manifest,
    resources: Resources,
    gpu_memory_gib: float | None,
) -> TrialCost:
    """gpu_memory_gib: predicted, where no probe has measured it"""
    done, steps = int(read_last_row(trial.folder).get("epoch", 0)), steps_of_epoch(config, manifest)
    if isinstance(pace, str):
        if config.train.budget_min:  # at any pace
            source = f"train.budget_min, without start and end ({pace})"
            return TrialCost(trial, 60 * config.train.budget_min, None, None, gpu_memory_gib, source)
        at_any = EpochTime(0.0, 0.0)  # epochs and steps are as many at any pace
        epochs = max(0.0, epochs_of(config.train, steps, at_any) - done)
        return TrialCost(trial, None, epochs, None, gpu_memory_gib, pace)
    epochs = max(0.0, epochs_of(config.train, steps, pace.epoch) - done)
    host_gib = pace.host_memory_gib
    if host_gib is not None:
        host_gib *= resources.processes_per_node
    if pace.gpu_memory_gib is not None:
        gpu_memory_gib = pace.gpu_memory_gib
    return TrialCost(trial, pace.trial_s(epochs), epochs, host_gib, gpu_memory_gib, pace.source)


def _times_memory(cost: TrialCost, count: int) -> TrialCost:
    host_gib, gpu_gib = (gib and gib * count for gib in (cost.host_memory_gib, cost.gpu_memory_gib))
    return replace(cost, host_memory_gib=host_gib, gpu_memory_gib=gpu_gib)


def _notes_on_sharing(trials_at_once: int, resources: Resources) -> list[str]:
    notes = [f"memory is that of {trials_at_once} trials at once"]
    if resources.gpus_per_node:
        notes.append("trials that share a GPU are estimated as one after the other, the most that it can take")
    return notes


def _notes_on_time(costs: Sequence[TrialCost], resources: Resources) -> list[str]:
    """Whether a trial takes longer than a job may."""
    limit_s, longest_s = resources.timeout_min * 60.0, max((cost.seconds or 0.0 for cost in costs), default=0.0)
    if longest_s <= limit_s:
        return []
    attempts = -(-longest_s // limit_s)
    over = f"a trial of {duration(longest_s)} goes over the time limit of {resources.timeout_min} min"
    return [f"{over}: it takes {attempts:.0f} attempts, or a higher --timeout-min"]


def _end(costs: Sequence[TrialCost], max_parallel: int, trials_per_job: int, side_by_side: int) -> float | None:
    """When the last job ends if each starts as soon as one of `max_parallel` places is free."""
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    if not costs or len(seconds) < len(costs):
        return None
    jobs = [
        _makespan(seconds[start : start + trials_per_job], side_by_side)
        for start in range(0, len(seconds), trials_per_job)
    ]
    return _makespan(jobs, max_parallel)


def _makespan(seconds: Sequence[float], num_places: int) -> float:
    """When the last ends if each starts, in this order, as soon as a place is free."""
    places = [0.0] * max(1, min(num_places, len(seconds)))
    for one in seconds:
        heapq.heapreplace(places, places[0] + one)
    return max(places)


def _axes(sweep: Sweep, costs: Sequence[TrialCost]) -> tuple[AxisCost, ...]:
    found = []
    for name in sweep.axes:
        seconds: dict[str, list[float]] = {}
        for cost in costs:
            if cost.seconds is not None:
                seconds.setdefault(str(cost.trial.axes.get(name)), []).append(cost.seconds)
        if len(seconds) > 1:
            found.append(AxisCost(name, {value: mean(several) for value, several in seconds.items()}))
    return tuple(sorted(found, key=lambda axis: -axis.spread))
