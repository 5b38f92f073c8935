"""What the trials of a sweep learn, by the target that each run's folder keeps."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.reporting.statistics.records import Record
from petseg.run_folder.layout import warn_once
from petseg.targets.target import Target, implied_target, load_target
from shards.command import Failure


def target_of(record: Record) -> Target:
    """The target of a run that has begun; the implied one if its folder keeps none, or a damaged one."""
    try:
        return load_target(record.trial.folder) or implied_target()
    except Failure as error:
        warn_once(f"left out: {error}")
        return implied_target()


def targets_of(records: Sequence[Record]) -> list[Target]:
    """The targets of the runs that have begun: one for each data.target and shard set."""
    first: dict[tuple[object, object], Record] = {}
    for record in records:
        if record.rows or record.result:
            first.setdefault((record.values.get("data.target"), record.values.get("data.shards")), record)
    return list({target.names: target for record in first.values() for target in [target_of(record)]}.values())


def counted_words(target: Target) -> str:
    """`the 10 of 11 classes that count (all but background)`, or `the 11 classes`."""
    left_out = [name for value, name in enumerate(target.names) if value not in target.counted]
    if not left_out:
        return f"the {len(target)} classes"
    return f"the {len(target.counted)} of {len(target)} classes that count (all but {', '.join(left_out)})"
