"""Cells that have become trials: each has an id and a folder, and belongs to a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.design.cells import Cells
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Cell
from jobs.runs.trial import Sweep, Trial, plan_sweep, save_sweep
from petseg.config import RunConfig
from petseg.config.values import weights_files, with_values
from petseg.data.store import is_remote
from petseg.run_folder.layout import claim_folder


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep that the command concerns."""

    sweep: Sweep
    cells: Mapping[str, Cell]  # by trial id
    sets: ShardSets

    def __iter__(self) -> Iterator[Trial]:
        return iter([trial for trial in self.sweep.trials if trial.id in self.cells])

    def only(self, trials: Iterable[Trial]) -> Trials:
        """Some of them."""
        return replace(self, cells={trial.id: self.cells[trial.id] for trial in trials})


def plan_trials(cells: Cells, folder: Path, meant: Iterable[Cell] | None = None) -> Trials:
    """The trials of the cells in the sweep's folder; writes nothing, and raises ValueError as `plan_sweep`.

    meant: those that may be submitted now, by default all
    """
    sweep = plan_sweep(cells.spec, cells.cells, cells.sets, folder)
    return Trials(sweep, cells.sets.by_id(cells.cells if meant is None else meant), cells.sets)


def write_trials(trials: Trials) -> None:
    """Write sweep.json, and the config.json of each chosen trial; trials that were stopped early may resume.

    Raises ValueError for a folder that holds another run.
    """
    sweep = trials.sweep
    save_sweep(sweep)
    for trial in trials:
        if sweep.early_stopping is None:
            trial.resume_pruned()
        claim_folder(with_absolute_paths(trials.cells[trial.id].config), sweep.hash_of(trial), trial.folder)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Name shards and weights by absolute paths: a job starts in another folder, that of its snapshot of the code."""
    paths = weights_files(config)
    if not is_remote(config.data.shards):
        paths |= {"data.shards": config.data.shards}
    return with_values(config, {name: str(Path(path).absolute()) for name, path in paths.items()})
