"""Rounds of a Bayesian search (method bayes): the next trials, proposed from those that have ended.

    python jobs/sweep.py --sweep jobs/sweeps/search.yaml --partition gpu       # proposes and submits some; again, more
    python jobs/sweep.py --sweep jobs/sweeps/search.yaml --cluster local       # goes on until run_cap

Each round adds at most as many trials as the batch has room for beside unfinished ones. A proposal is recorded before
it is submitted, is identified by its content, and is never proposed again. Repeating the command at once adds nothing,
and after run_cap trials it never does.

The first STARTUP trials are random and depend only on the file. Later ones depend on which trials had ended when they
were proposed, and can be reproduced only from the journal. Method random needs no journal: all its trials follow from
the file (jobs.design.expansion.draws).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.design.expansion import Cell
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.runs.trials import plan_sweep
from jobs.search.journal import ask, cells_of, open_study, peek_study, tell
from jobs.state.observed import observe

SETTLED = ("done", "pruned", "failed")  # a failed trial frees its slot: it may fail again each time


@dataclass(frozen=True)
class Round:
    """A search's trials: those proposed before, and those proposed now."""

    known: list[Cell]
    new: list[Cell]


def next_round(spec: Spec, sets: ShardSets, folder: Path, batch: int, record: bool = True) -> Round:
    """Record the trials that have ended, and propose as many as `batch` and run_cap leave room for.

    record: write to the journal; the caller holds the sweep's lock. Raises ValueError as open_study does.
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
