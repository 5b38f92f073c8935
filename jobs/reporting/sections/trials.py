"""The trials as the last table shows them, with all that is needed to make one again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.reporting.sections.reproduce import train_command
from jobs.reporting.statistics.records import Record
from petseg.run_folder.attempts import Life


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    record: Record
    axes: str
    best_dice: tuple[float, int] | None  # and its epoch
    lowest_loss: tuple[float, int] | None
    command: str
    lives: tuple[Life, ...]
    facts: tuple[tuple[str, str], ...]  # what it ran on and with, in words


def trial_row(record: Record, manifest_hash: str) -> TrialRow:
    dice, loss = (
        [(row[name], int(row["epoch"])) for row in record.rows if math.isfinite(row.get(name, math.nan))]
        for name in ("val/dice", "val/loss")
    )
    best = max(dice, key=lambda pair: pair[0], default=None)
    if record.result:
        best = record.result.metrics["val/dice"], record.result.best_epoch
    lives = lives_of(record)
    return TrialRow(
        record,
        record.standing.trial.label,
        best,
        min(loss, key=lambda pair: pair[0], default=None),
        reproduce(record),
        lives,
        facts_of(record, lives, manifest_hash),
    )


def lives_of(record: Record) -> tuple[Life, ...]:
    return tuple(record.standing.trial.lives())


def facts_of(record: Record, lives: tuple[Life, ...], manifest_hash: str) -> tuple[tuple[str, str], ...]:
    """Those that are known."""
    result = record.result
    # a requeued trial can have run on with other code, and then its numbers are of both
    codes = dict.fromkeys(life.code or "the working tree" for life in lives)
    hosts = dict.fromkeys([*(life.host for life in lives), *([result.host] if result else [])])
    facts = {
        "log": record.standing.log or "none: not submitted yet",
        "config": f"{record.standing.trial.folder.name}/config.json" if record.config else "",
        "data": manifest_hash,
        "code": ", then ".join(codes),
        "processes": str(result.world_size) if result else "",
        "host": ", then ".join(hosts) or record.standing.host,
        "device": result.device if result else "",
        "starts": str(len(lives)) if len(lives) > 1 else "",
    }
    return tuple((name, text) for name, text in facts.items() if text)


def reproduce(record: Record) -> str:
    if record.config is None:
        return ""
    try:
        return train_command(record.config)
    except ValueError as error:
        return f"# not a config of this version: {error}"
