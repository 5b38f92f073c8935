"""The operation of a sweep: its failures, its cost and the use of its hardware, all read from its folder."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cost.usage import CORE_HOURS, GPU_HOURS, J_PER_KWH, read_resources
from jobs.reporting.sections.trials import TrialRow, device_text
from jobs.reporting.statistics.records import Group, Record
from jobs.runs.trial import Sweep
from slurm.resources import Resources

MAX_FAILURES, MAX_NAMED, MAX_SPEEDS = 12, 8, 60
TRACEBACK_CHARS = 4000
PROCESS_HOURS = "process hours"


@dataclass(frozen=True)
class Failure:
    """Trials that ended in the same way."""

    cause: str
    signature: str  # the same for all of them
    count: int
    first_line: str
    traceback: str  # of the first of them
    advice: str
    trials: tuple[str, ...]
    unnamed: int


@dataclass(frozen=True)
class Cost:
    """The cost in hours of the unit, from the records of the trials: a lower bound."""

    unit: str
    asked_h: float | None  # None where nothing limited the processes
    used_h: float
    wasted_h: float  # of trials that failed for good
    epochs: int  # done, once each
    train_s: float
    basis: str
    energy_kwh: float | None  # of the GPUs, None where no trial knows it


@dataclass(frozen=True)
class Speed:
    """A cell's hardware, means over finished trials; None for what no run recorded."""

    label: str
    device: str
    numbers: dict[str, float | None]


@dataclass(frozen=True)
class Operation:
    """The content of the section."""

    failures: tuple[Failure, ...]
    more_failures: int
    starts: int
    restarts: int  # starts beyond each trial's first
    restarted: int  # trials that have them
    cost: Cost | None
    speeds: tuple[Speed, ...]
    columns: tuple[tuple[str, str], ...]  # of the speeds that some run recorded: key, title
    more_speeds: int


SPEEDS = (
    ("images_per_s", "images/s"),
    ("headroom", "without waiting"),
    ("data_wait", "data wait"),
    ("mfu", "MFU"),
    ("peak_memory_mb", "peak memory"),
    ("train_s", "train time"),
)


def operate(sweep: Sweep, groups: Sequence[Group], rows: Sequence[TrialRow]) -> Operation:
    """The section. groups: best first."""
    failures = group_failures([row.record for row in rows])
    starts = [len(row.attempts) for row in rows]
    speeds = [speed_of(group) for group in groups if group.done]
    known = {key for speed in speeds for key, value in speed.numbers.items() if value is not None}
    return Operation(
        failures=tuple(failures[:MAX_FAILURES]),
        more_failures=max(0, len(failures) - MAX_FAILURES),
        starts=sum(starts),
        restarts=sum(max(0, count - 1) for count in starts),
        restarted=sum(count > 1 for count in starts),
        cost=cost_of(sweep, rows),
        speeds=tuple(speeds[:MAX_SPEEDS]),
        columns=tuple((key, title) for key, title in SPEEDS if key in known),
        more_speeds=max(0, len(speeds) - MAX_SPEEDS),
    )


def group_failures(records: Sequence[Record]) -> list[Failure]:
    """The trials that ended without a result, by cause and signature, the most frequent first."""
    ended = [record for record in records if record.trial_status.verdict]
    keys = Counter(
        (r.trial_status.verdict.cause, r.trial_status.verdict.signature) for r in ended if r.trial_status.verdict
    )
    failures = []
    for (cause, signature), count in keys.most_common():
        own = [r for r in ended if (v := r.trial_status.verdict) and (v.cause, v.signature) == (cause, signature)]
        with_traceback = next(
            (r.trial_status.verdict for r in own if r.trial_status.verdict and r.trial_status.verdict.traceback), None
        )
        verdict = with_traceback or own[0].trial_status.verdict
        assert verdict
        traceback = verdict.traceback.strip()
        failures.append(
            Failure(
                cause=cause_in_words(cause),
                signature=signature if signature != cause else "",
                count=count,
                first_line=error_line(traceback) or own[0].trial_status.note,
                traceback=traceback[-TRACEBACK_CHARS:],
                advice=verdict.advice,
                trials=tuple(record.id for record in own[:MAX_NAMED]),
                unnamed=max(0, count - MAX_NAMED),
            )
        )
    return failures


def cause_in_words(cause: str) -> str:
    return cause.replace("_", " ").replace("gpu", "GPU").replace("nan", "NaN")


def error_line(traceback: str) -> str:
    """The first line of the error at the end of a traceback, `ValueError: ...`; frames above it are indented."""
    lines = [line for line in traceback.splitlines() if line and not line[0].isspace()]
    return next((line for line in reversed(lines) if ":" in line and not line.startswith("Traceback")), "")


def cost_of(sweep: Sweep, rows: Sequence[TrialRow]) -> Cost | None:
    """The training in the metrics, times the resources of a job in the last launch; None before the first epoch.

    `python jobs/usage.py` computes the same without accounting. Slurm is not asked.
    """
    seconds = {row.record.id: sum(float(m.get("perf/seconds", 0.0)) for m in row.record.rows) for row in rows}
    total_s = sum(seconds.values())  # of training; trials at once share what they hold
    held_s = {row.record.id: seconds[row.record.id] * row.record.trial.share() for row in rows}
    if not total_s:
        return None
    held = (resources := read_resources(sweep)) or Resources(gpus_per_node=0, cpus_per_task=1)
    given = sweep.submissions()
    on_slurm = any(submission.cluster == "slurm" for submission in given.values())
    together = Counter(submission.job_id for submission in given.values())
    # a local launch on a machine without a GPU asks for one all the same, which nobody can hold
    gpus = held.nodes * held.gpus_per_node if on_slurm or not _only_on_cpus(rows) else 0
    units = gpus or held.processes * (held.cpus_per_task if on_slurm else 1)
    unit = GPU_HOURS if gpus else CORE_HOURS if on_slurm else PROCESS_HOURS
    begun = [row for row in rows if row.record.rows or row.attempts]
    starts = sum(
        max(1, len(row.attempts)) / (together[given[i].job_id] if (i := row.record.id) in given else 1) for row in begun
    )
    failed_s = sum(held_s[row.record.id] for row in rows if row.record.trial_status.status == "failed")
    name = unit.removesuffix(" hours")
    held_by = f"{units} {name}{('es' if name.endswith('s') else 's') * (units > 1)} for each trial"
    basis = f"{held_by}, as the last launch asked for" if resources and on_slurm else held_by
    return Cost(
        unit=unit,
        asked_h=held.timeout_min / 60 * units * starts if on_slurm and resources else None,
        used_h=sum(held_s.values()) * units / 3600,
        wasted_h=failed_s * units / 3600,
        epochs=sum(len(row.record.rows) for row in rows),
        train_s=total_s,
        basis=basis,
        energy_kwh=energy_of(rows),
    )


def energy_of(rows: Sequence[TrialRow]) -> float | None:
    """The kWh of the GPUs; trials that run on a GPU at once share the reading of its meter."""
    known = [
        metrics["perf/energy_j"] * row.record.trial.share() / J_PER_KWH
        for row in rows
        for metrics in row.record.rows
        if "perf/energy_j" in metrics
    ]
    return sum(known) if known else None


def _only_on_cpus(rows: Sequence[TrialRow]) -> bool:
    results = [row.record.result for row in rows if row.record.result]
    return bool(results) and all(result.is_on_cpu for result in results)


def speed_of(group: Group) -> Speed:
    results = [record.result for record in group.done if record.result]
    numbers: dict[str, float | None] = {}
    for key, _ in SPEEDS:
        values = [float(value) for result in results if (value := getattr(result, key)) is not None]
        numbers[key] = statistics.fmean(values) if values else None
    devices = dict.fromkeys(
        f"{r.world_size} processes, {device_text(r)}" if r.world_size > 1 else device_text(r) for r in results
    )
    return Speed(group.label, ", ".join(devices), numbers)
