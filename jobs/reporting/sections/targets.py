"""What the trials of a sweep learn, by the target that each run's folder keeps."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.reporting.statistics.records import Record
from petseg.run_folder.layout import warn_once
from petseg.targets.pets import PET
from petseg.targets.target import BACKGROUND, Target, load_target
from shards.command import Failure


def target_of(record: Record) -> Target | None:
    """The target of a run that has begun; None for the pet of a set of trimaps, whose runs keep none."""
    try:
        return load_target(record.trial_status.trial.folder)
    except Failure as error:
        warn_once(f"left out: {error}")
        return None


def targets_of(records: Sequence[Record]) -> list[Target | None]:
    """The targets of the runs that have begun: one for each data.target and shard set; None as `target_of`."""
    first: dict[tuple[object, object], Record] = {}
    for record in records:
        if record.rows or record.result:
            first.setdefault((record.values.get("data.target"), record.values.get("data.shards")), record)
    return list({names_of(target): target for record in first.values() for target in [target_of(record)]}.values())


def names_of(target: Target | None) -> tuple[str, ...]:
    """The names of the classes, by which two targets are told apart."""
    return target.names if target else (BACKGROUND, PET)


def is_binary(target: Target | None) -> bool:
    """Whether there are two classes, of which the second is what is looked for."""
    return target is None or target.is_binary


def wanted_class(target: Target | None) -> str:
    """The name of the second class, where there are two."""
    return names_of(target)[1]


def counted_words(target: Target) -> str:
    """`the 10 of 11 classes that count (all but background)`, or `the 11 classes`."""
    left_out = [name for value, name in enumerate(target.names) if value not in target.counted]
    if not left_out:
        return f"the {len(target)} classes"
    return f"the {len(target.counted)} of {len(target)} classes that count (all but {', '.join(left_out)})"
