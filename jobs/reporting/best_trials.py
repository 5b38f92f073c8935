"""Which trials of a sweep are its best ones."""

from __future__ import annotations

from jobs.reporting.statistics.records import gather, rank, read_records, varied
from jobs.runs.trial import Sweep, Trial
from shards.command import typed


def best_trials(sweep: Sweep, all_seeds: bool) -> list[Trial]:
    """The trial of the highest val Dice in the cell with the highest mean, or all finished trials of that cell.

    Raises ValueError if no trial has finished, and if trials were measured on several shard sets.
    """
    if len(sweep.hashes) > 1:
        raise ValueError(
            f"{sweep.folder} has trials of {len(sweep.hashes)} shard sets, whose Dice cannot be compared: name "
            "one with --trial"
        )
    records = read_records(sweep)
    first = next(iter(rank(gather(varied(sweep, records), records))), None)
    best = first.group.best() if first else None
    if first is None or best is None:
        look = typed("jobs/status.py", sweep.folder)
        raise ValueError(f"no trial of {sweep.folder} has finished: `{look}` shows where they stand")
    chosen = first.group.done if all_seeds else (best,)
    return [record.trial for record in chosen]
