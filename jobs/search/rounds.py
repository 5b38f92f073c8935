"""A search that learns (method bayes): the next trials, proposed in the light of those that have ended.

    python jobs/sweep.py --sweep jobs/sweeps/search.yaml --partition gpu       # proposes and submits some; again, more
    python jobs/sweep.py --sweep jobs/sweeps/search.yaml --cluster local       # goes on until run_cap

A sweep stays a set that converges. The set grows only here, by at most as many trials as have none before them in the
queue; what was proposed is recorded before it is submitted, is known by its content, and is never proposed again. The
same command at once again finds nothing to do; after run_cap it finds nothing to do for ever.
Chance makes the first STARTUP trials, the same for the same file. What follows depends on which trials had ended when
it was proposed, and cannot be had again but from the record. For a set that can, use method random, which needs no
record: all its trials follow from the file (jobs.design.spec.draws).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Cell, Spec
from jobs.runs.trial import plan_sweep
from jobs.search.journal import ask, cells_of, open_study, peek_study, tell
from jobs.state.observed import observe

SETTLED = ("done", "pruned", "failed")  # a failed trial keeps no place: it may fail again for ever


@dataclass(frozen=True)
class Round:
    """A search's trials: those proposed before, and those proposed now."""

    known: list[Cell]
    new: list[Cell]


def next_round(spec: Spec, sets: ShardSets, folder: Path, batch: int, record: bool = True) -> Round:
    """Note what has ended, and propose as many trials as there is room for among `batch` and until run_cap.

    record: write it down, for which the caller must hold the sweep's lock. Raises ValueError as open_study.
    """
    manifest = sets.first[1]  # the only one: a search cannot choose data.shards
    opened = open_study if record else peek_study
    study = opened(folder, spec, manifest.hash)
    known = cells_of(study, spec)
    sweep = plan_sweep(spec, known, sets, folder)
    proposed = {sets.trial_id(cell.config) for cell in known}
    rows = {row.trial.id: row for row in observe(sweep).of(proposed).rows}
    tell(study, spec, manifest.hash, rows)
    open_trials = sum(row.status not in SETTLED for row in rows.values())
    room = min(batch - open_trials, spec.run_cap - len(known))
    return Round(known, ask(study, spec, manifest.hash, room))
