"""A sweep's usage, from Slurm's accounting of each job start, or else from the records of its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.cost.accounting import Start, ask_sacct
from jobs.runs.trial import LAUNCH_NAME, Submission, Sweep, Trial
from jobs.state.observed import observe
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.attempts import Attempt
from shards.files import build, read_json_object
from slurm.resources import Resources

GPU_HOURS, CORE_HOURS = "GPU hours", "CPU core hours"
J_PER_KWH = 3.6e6
CLOCK_SLACK_S = 5.0  # between slurmctld's clock and a node's


@dataclass(frozen=True)
class Line:
    """The usage of one job, or of one trial if only the trials' records are known."""

    label: str
    job_id: str
    trials: tuple[str, ...]
    starts: int
    state: str
    asked_h: float | None
    used_h: float
    wasted_h: float
    energy_kwh: float | None = None  # of the nodes that it ran on, None where they are not metered


@dataclass(frozen=True)
class Usage:
    """The hours that a sweep asked for, used and wasted, in its unit."""

    source: str  # sacct | records
    unit: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()  # questions that Slurm did not answer

    @property
    def energy_kwh(self) -> float | None:
        known = [line.energy_kwh for line in self.lines if line.energy_kwh is not None]
        return sum(known) if known else None

    def total(self, column: str) -> float:
        return sum(getattr(line, column) or 0.0 for line in self.lines)


def measure(sweep: Sweep) -> Usage:
    """The usage by sacct if it knows the sweep's jobs, else by the records of the trials."""
    submissions = sweep.all_submissions()
    on_slurm = sorted({s.job_id for s in submissions if s.cluster == "slurm" and s.job_id})
    accounts = ask_sacct(on_slurm)
    starts, observed = accounts.starts, observe(sweep)
    rows = observed.rows
    resources = read_resources(sweep)
    doubts = [f"unknown: what accounting has (sacct: {accounts.silence})"] if accounts.silence else []
    doubts += filter(None, [observed.doubt])
    if not starts:
        return replace(by_records(sweep, rows, submissions, resources), doubts=tuple(doubts))
    usage = replace(by_sacct(sweep, rows, submissions, starts, resources), doubts=tuple(doubts))
    elsewhere = {s.job_id for s in submissions if s.job_id} - {start.job_id for start in starts}
    if elsewhere:
        note = f"{len(elsewhere)} jobs are not in it, because accounting does not know them (run here, or forgotten)"
        return replace(usage, notes=(*usage.notes, note))
    return usage


def read_resources(sweep: Sweep) -> Resources | None:
    """The resources that the last launch asked for; None if they are unknown."""
    try:
        return build(Resources, read_json_object(sweep.folder / LAUNCH_NAME)["resources"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Kept:
    """The training of one attempt that counts, because its epochs are in metrics.jsonl."""

    attempt: Attempt
    seconds: float  # of its whole job; trials that run at once have a share each


def kept_by_attempt(trial: Trial) -> list[Kept]:
    """The training that each attempt of a trial contributed, from its first step to the first step of the next.

    metrics.jsonl has each epoch once; the next attempt repeats what an attempt did after its last save.
    """
    attempts, rows = trial.attempts(), [row for row in trial.metrics() if "step" in row]
    kept = []
    for number, attempt in enumerate(attempts):
        first, end = (
            attempt.first_step,
            attempts[number + 1].first_step if attempt is not attempts[-1] else float("inf"),
        )
        seconds, before = 0.0, 0
        for row in rows:
            step = row.get("step", before)
            shared = max(0, min(step, end) - max(before, first))
            seconds += row.get("perf/seconds", 0.0) * shared / (step - before) if step > before else 0.0
            before = step
        kept.append(Kept(attempt, seconds * trial.share()))
    return kept


def by_sacct(
    sweep: Sweep,
    rows: Sequence[TrialStatus],
    submissions: Sequence[Submission],
    starts: Sequence[Start],
    resources: Resources | None,
) -> Usage:
    gpus = max((start.gpus or 0 for start in starts), default=0)
    notes = []
    held_gpus = resources.nodes * resources.gpus_per_node if resources else 0
    if not gpus and held_gpus:
        notes.append("accounting keeps no GPUs here (AccountingStorageTRES): their number is that of the last launch")
    unit = GPU_HOURS if gpus or held_gpus else CORE_HOURS
    trials_of: dict[str, list[str]] = {}
    for submission in submissions:
        trials_of.setdefault(submission.job_id, []).append(submission.trial)
    by_id = {trial.id: trial for trial in sweep.trials}
    kept = {identifier: kept_by_attempt(trial) for identifier, trial in by_id.items()}
    hopeless = {row.trial.id for row in rows if row.status == "failed"}
    lines = []
    for job_id in dict.fromkeys(start.job_id for start in starts):
        own = sorted((start for start in starts if start.job_id == job_id), key=lambda start: start.began)
        trials = [by_id[i] for i in dict.fromkeys(trials_of.get(job_id, ())) if i in by_id]
        lost_s = wasted_s(
            own, [one for trial in trials for one in kept[trial.id]], all(trial.id in hopeless for trial in trials)
        )
        units = [(start.gpus or held_gpus) if unit == GPU_HOURS else start.cores for start in own]
        metered = [start.energy_j for start in own if start.energy_j is not None]
        lines.append(
            Line(
                label=label_of(trials),
                job_id=job_id,
                trials=tuple(trial.id for trial in trials),
                starts=sum(start.elapsed_s > 0 for start in own),
                state=", ".join(dict.fromkeys(start.state for start in own)),
                asked_h=_hours([start.asked_s for start in own], units),
                used_h=_hours([start.elapsed_s for start in own], units),
                wasted_h=_hours(lost_s, units),
                energy_kwh=sum(metered) / J_PER_KWH if metered else None,
            )
        )
    if any(line.energy_kwh is not None for line in lines):
        notes.append("energy: of whole nodes, whatever else ran there, as Slurm's meters have it")
    return Usage("sacct", unit, tuple(lines), tuple(notes))


def wasted_s(starts: Sequence[Start], kept: Sequence[Kept], failed: bool) -> list[float]:
    """The wasted seconds of each start of a job, in their order.

    kept: the attempts of the job's trials; each belongs to the last start before it
    failed: none of the trials has a result or a retry ahead
    """
    used_s = [0.0] * len(starts)
    for one in kept:
        before = [i for i, start in enumerate(starts) if start.began <= one.attempt.time + CLOCK_SLACK_S]
        if before:
            used_s[before[-1]] += one.seconds
    return [
        0.0 if not start.ended_early else start.elapsed_s if failed else max(0.0, start.elapsed_s - used)
        for start, used in zip(starts, used_s, strict=True)
    ]


def by_records(
    sweep: Sweep, rows: Sequence[TrialStatus], submissions: Sequence[Submission], resources: Resources | None
) -> Usage:
    """The usage by training seconds in the metrics, times the resources of a job in the last launch."""
    held = resources or Resources(gpus_per_node=0, cpus_per_task=1)
    on_slurm = any(submission.cluster == "slurm" for submission in submissions)
    gpus = held.nodes * held.gpus_per_node
    notes = ["a lower bound: sacct knows nothing of these jobs, so starts, validation and repeated work are not in it"]
    if resources is None:
        notes.append("what the jobs held is not known: estimated as one core each")
    elif not on_slurm:
        notes.append("run on this machine: estimated with what the last launch asked for")
    units = gpus or held.processes * held.cpus_per_task
    last_jobs = {submission.trial: submission.job_id for submission in submissions if submission.job_id}
    together = Counter(last_jobs.values())
    lines = []
    for row in rows:
        own = [s for s in submissions if s.trial == row.trial.id and s.job_id]
        if not own:
            continue
        seconds = sum(float(metrics.get("perf/seconds", 0.0)) for metrics in row.trial.metrics())
        starts = len(row.trial.attempts())
        used_h = seconds * units * row.trial.share() / 3600
        # nothing limits a process of this machine
        asked_h = held.timeout_min / 60 * units * max(1, starts) / together[own[-1].job_id] if on_slurm else None
        wasted_h = used_h if row.status == "failed" else 0.0
        trial = row.trial
        lines.append(Line(trial.label, own[-1].job_id, (trial.id,), starts, row.status, asked_h, used_h, wasted_h))
    return Usage("records", GPU_HOURS if gpus else CORE_HOURS, tuple(lines), tuple(notes))


def label_of(trials: Sequence[Trial]) -> str:
    if not trials:
        return ""
    return trials[0].label + (f" and {len(trials) - 1} more" if len(trials) > 1 else "")


def _hours(seconds: Sequence[float], units: Sequence[float]) -> float:
    return sum(s * n for s, n in zip(seconds, units, strict=True)) / 3600
