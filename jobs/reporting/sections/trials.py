"""The trials as the last table shows them, with all that is needed to make one again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.reporting.sections.reproduce import train_command
from jobs.reporting.statistics.records import Record
from petseg.run_folder.attempts import Attempt
from petseg.run_folder.layout import Result


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    record: Record
    axes: str
    best_dice: tuple[float, int] | None  # and its epoch
    lowest_loss: tuple[float, int] | None
    command: str
    attempts: tuple[Attempt, ...]
    facts: tuple[tuple[str, str], ...]  # what it ran on and with, in words


def trial_row(record: Record, manifest_hash: str) -> TrialRow:
    dice, loss = (
        [(row[name], int(row["epoch"])) for row in record.rows if math.isfinite(row.get(name, math.nan))]
        for name in ("val/dice", "val/loss")
    )
    best = max(dice, key=lambda pair: pair[0], default=None)
    if record.result:
        best = record.result.metrics["val/dice"], record.result.best_epoch
    attempts = attempts_of(record)
    return TrialRow(
        record,
        record.trial.label,
        best,
        min(loss, key=lambda pair: pair[0], default=None),
        reproduce(record),
        attempts,
        facts_of(record, attempts, manifest_hash),
    )


def device_text(result: Result) -> str:
    """`NVIDIA H100` or `cpu, 2 threads`; results hold `1 threads` too."""
    return result.device.removesuffix("s") if result.device.endswith(", 1 threads") else result.device


def attempts_of(record: Record) -> tuple[Attempt, ...]:
    return tuple(record.trial.attempts())


def facts_of(record: Record, attempts: tuple[Attempt, ...], manifest_hash: str) -> tuple[tuple[str, str], ...]:
    """The known facts on a trial's hardware, code and data."""
    result = record.result
    # a requeued trial can have run on with other code, and then its numbers are of both
    codes = dict.fromkeys(attempt.code or "the working tree" for attempt in attempts)
    hosts = dict.fromkeys([*(attempt.host for attempt in attempts), *([result.host] if result else [])])
    facts = {
        "log": record.trial_status.log or "none: not submitted yet",
        "config": f"{record.trial.folder.name}/config.json" if record.config else "",
        "data": manifest_hash,
        "code": ", then ".join(codes),
        "processes": str(result.world_size) if result else "",
        "host": ", then ".join(hosts) or record.trial_status.host,
        "device": device_text(result) if result else "",
        "starts": str(len(attempts)) if len(attempts) > 1 else "",
    }
    return tuple((name, text) for name, text in facts.items() if text)


def reproduce(record: Record) -> str:
    if record.config is None:
        return ""
    try:
        return train_command(record.config)
    except ValueError as error:
        return f"# not a config of this version: {error}"
